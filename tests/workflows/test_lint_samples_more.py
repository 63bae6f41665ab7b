"""One more clean guide."""

from tests.workflows.test_lint_samples import Clean

BACKUP = Clean(
    "backup",
    """# Nightly backup did not finish

Everything here can be done by the person on call.

<!-- guide: queries=queries.toml -->

## Parameters

- `database` (string): which one
- `night` (timestamp): the night's date

## Step 1 - Find the last good backup

### Instructions

Find out how many hours old the last complete backup of {database} is on {night}. Up to 26 hours are
allowed.

### Queries

- `last_backup`

### Connections

- if `last_backup.rows == 0 or max(last_backup.age_hours) > 26`: Step 2
- otherwise: end

<!-- Reaches A Final Conclusion: The last backup is recent; the alert came too early. -->

## Step 2 - Read the job's log

### Instructions

Read the last lines that the job wrote. Proceed to Step 3 if the disk was full, or to Step 4 if
a lock was held.

### Queries

- `job_log`

### Connections

- if the log says `No space left on device`: Step 3
- if the log says `lock held` and not `No space left on device`: Step 4
- otherwise: Step 5

## Step 3 - Free space

### Instructions

Delete backups of {database} older than 30 days; keep the first of each month.

### Connections

- Step 5

## Step 4 - Release the lock

### Instructions

Ask the owner of the session that holds the lock to end it.

### Connections

- Step 5

## Step 5 - Run it again

### Instructions

Run the backup of {database} by hand, and watch the log until it says `complete`.

### Connections

- end

<!-- Reaches A Final Conclusion: The backup was repeated by hand. -->
""",
    """[source.catalog]
type = "sqlite"
path = "catalog.db"

[source.jobs]
type = "log"
path = "logs/backup.log"

[query.last_backup]
source = "catalog"
sql = \"\"\"
SELECT finished_at,
       CAST((julianday(:night) - julianday(MAX(finished_at))) * 24 AS INTEGER) AS age_hours
FROM backups
WHERE database = :database AND state = 'complete'
GROUP BY database
\"\"\"

[query.last_backup.parameters]
database = { type = "string" }
night = { type = "timestamp" }

[query.job_log]
source = "jobs"
pattern = 'db={database} (?P<message>.*)'
end = "{night}"

[query.job_log.parameters]
database = { type = "string" }
night = { type = "timestamp" }
""",
)
