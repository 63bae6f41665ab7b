"""A query of the sample guide: data for the importer; only a test that compares runs it."""


class Plugin2:
    plugin_id = "2"
    description = "Depth of a relay's queue. Parameters: relay, start_time, end_time."
    source_tsg = "MailDelay"
    language = "sql"
    template = """SELECT ts, depth FROM relay_queue
WHERE relay = '{relay}' AND ts BETWEEN '{start_time}' AND '{end_time}' ORDER BY ts"""

    def execute(self, **kwargs):
        required_params = ["relay", "start_time", "end_time"]
        for name in required_params:
            if name not in kwargs:
                return f"Missing required parameter: {name}"
        values = dict(kwargs)
        for name in ["start_time", "end_time"]:
            if "T" in values[name]:
                values[name] = values[name].replace("T", " ").replace("Z", "")
        return self.template.format(**values)
