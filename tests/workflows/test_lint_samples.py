"""Clean guides of our own, in other words and shapes than those that ship."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Clean:
    """A guide and its queries, as texts."""

    name: str
    guide: str
    queries: str
    folder: Path | None = None

    def write(self, folder: Path) -> Path:
        path = folder / "guide.md"
        path.write_text(self.guide, encoding="utf-8")
        (folder / "queries.toml").write_text(self.queries, encoding="utf-8")
        return path


PAYMENTS = Clean(
    "payments",
    """# Card payments are declined

Used when the share of declined card payments doubles within ten minutes. Ask the payments team
before you change anything.

<!-- guide: queries=queries.toml -->

## Parameters

- `merchant` (string): the merchant in the alert
- `window_start` (timestamp): first minute of the window
- `window_end` (timestamp): last minute of the window

## Step 1 - Count declines by reason

### Instructions

Count the declined payments of {merchant} between {window_start} and {window_end}, by reason. Go on
if more than 200 were declined for any one reason.

### Queries

- `declines`

### Connections

- if `declines.rows > 0 and max(declines.count) > 200`: Step 2
- otherwise: Step 5

## Step 2 - Identify the main reason

### Instructions

Look at the reason with the most declines. The reasons that matter here are `expired`, `funds` and
`issuer`.

### Connections

- if `declines.reason[0] == "issuer"`: Step 3
- if `declines.reason[0] == "expired"`: Step 4
- if `declines.reason[0] not in ["issuer", "expired"]`: Step 6

## Step 3 - Check the issuer's status page

### Instructions

Open the status page of the issuing bank and write down whether it reports an incident.

### Connections

- if the status page reports an incident that is open: Step 7
- otherwise: Step 6

## Step 4 - Verify the vault's card updates

### Instructions

Compare the number of cards that the vault refreshed with the number that expired. When fewer
than 90 percent were refreshed, the updater has stopped.

### Queries

- `card_updates`

### Connections

- if `min(card_updates.refreshed_percent) < 90`: Step 8
- if `min(card_updates.refreshed_percent) >= 90`: Step 6

## Step 5 - Close without action

### Instructions

Write the count into the ticket and resolve it.

### Connections

- end

<!-- Reaches A Final Conclusion: Declines are within their usual range. -->

## Step 6 - Hand over

### Instructions

Assign the ticket to the payments team and attach the counts.

### Connections

- end

<!-- Reaches A Final Conclusion: No automatic cause was found; the payments team continues. -->

## Step 7 - Wait for the bank

### Instructions

Subscribe to the bank's incident and tell support what to say to customers.

### Connections

- end

<!-- Reaches A Final Conclusion: The issuing bank has an incident. -->

## Step 8 - Restart the updater

### Instructions

Restart the job that refreshes cards, then check that the refreshed share rises.

### Connections

- end

<!-- Reaches A Final Conclusion: The card updater had stopped. -->
""",
    """[source.warehouse]
type = "postgres"
dsn_env = "WAREHOUSE_DSN"

[query.declines]
source = "warehouse"
sql = \"\"\"
SELECT reason, COUNT(*) AS count
FROM payments
WHERE merchant = :merchant
  AND status = 'declined'
  AND at >= :window_start AND at < :window_end
GROUP BY reason
ORDER BY count DESC
\"\"\"

[query.declines.parameters]
merchant = { type = "string" }
window_start = { type = "timestamp" }
window_end = { type = "timestamp" }

[query.card_updates]
source = "warehouse"
sql = \"\"\"
SELECT day, ROUND(100.0 * refreshed / NULLIF(expired, 0), 1) AS refreshed_percent
FROM card_updates
WHERE merchant = :merchant AND day <= date_trunc('day', :window_end)
ORDER BY day DESC LIMIT 7
\"\"\"

[query.card_updates.parameters]
merchant = { type = "string" }
window_end = { type = "timestamp" }
""",
)

GPU = Clean(
    "gpu",
    """# A training job has stalled

<!-- guide: queries=queries.toml; on_conclusion=drain -->

The job's step time has not been reported for 15 minutes. Two checks run in parallel.

## Parameters

- `job` (string): the job's name
- `node_pool` (string, default "gpu-a"): where it runs
- `fired_at` (timestamp): when the alert fired

## Step 1 - See whether it still steps

### Instructions

Read the seconds since the last step of {job} at {fired_at}. It has stalled if they are at least
900.

### Queries

- `last_step`

### Connections

- if `min(last_step.seconds) >= 900`: Step 2
- otherwise: Step 6

## Step 2 - Fan out

### Instructions

Start Steps 3 and 4 in parallel.

### Connections

- Step 3
- Step 4

## Step 3 - Look for bad GPUs

### Instructions

List GPUs of {node_pool} with an uncorrectable memory error. One is enough to stop a job.

### Queries

- `gpu_errors` with pool={node_pool}

### Connections

- Step 5

## Step 4 - Look at the network

### Instructions

1. Read how many packets the slowest link of {node_pool} dropped in a second.
2. Note the link's name.

### Queries

- `drops` with pool={node_pool}

### Connections

- Step 5

## Step 5 - Decide

### Instructions

Weigh the results of Step 3 and Step 4. An error of a GPU comes first; a link is at fault above 1000
drops a second.

### Connections

- if `gpu_errors.rows >= 1`: Step 7
- if `gpu_errors.rows == 0 and max(drops.value) > 1000`: Step 8
- if `gpu_errors.rows == 0 and max(drops.value) <= 1000`: Step 9

### Policy

- join: all

## Step 6 - False alarm

### Instructions

Silence the alert of {job} for an hour.

### Connections

- end

<!-- Reaches A Final Conclusion: The job steps. -->

## Step 7 - Drain the node

### Instructions

Cordon the node, so that nothing new starts on it.

### Command

```sh
echo "cordon a node of {node_pool}"
```

### Connections

- end

### Policy

- gate: approve (default deny, after 30m)
- idempotent: no

<!-- Reaches A Final Conclusion: A GPU is broken; its node is drained. -->

## Step 8 - Call the network team

### Instructions

Page the network team with the link's name.

### Connections

- end

<!-- Reaches A Final Conclusion: A link drops packets. -->

## Step 9 - Ask the owner

### Instructions

Ask the owner of {job} to attach a debugger, and keep the job as it is until then.

### Connections

- end

<!-- Reaches A Final Conclusion: Neither GPU nor network; the owner looks at the job. -->
""",
    """[source.metrics]
type = "prometheus"
url = "http://127.0.0.1:9090"

[query.last_step]
source = "metrics"
promql = 'time_since_step_seconds{job="{job}"}'
end = "{fired_at}"

[query.last_step.parameters]
job = { type = "string" }
fired_at = { type = "timestamp" }

[query.gpu_errors]
source = "metrics"
promql = 'gpu_uncorrectable_errors{pool="{pool}"} > 0'
end = "{fired_at}"

[query.gpu_errors.parameters]
pool = { type = "string" }
fired_at = { type = "timestamp" }

[query.drops]
source = "metrics"
promql = 'max by (link) (rate(link_drops_total{pool="{pool}"}[5m]))'
end = "{fired_at}"

[query.drops.parameters]
pool = { type = "string" }
fired_at = { type = "timestamp" }
""",
)
