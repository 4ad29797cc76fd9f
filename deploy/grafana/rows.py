"""What the dashboard shows: its panels, by the heading of their row."""

from __future__ import annotations

from panels import Panel, Query, heatmap, lines, stat, table

ALL = 'job="condconv",instance=~"$instance"'
IMAGES = f'{ALL},model=~"$model"'
BLOCKS = f'{IMAGES},block=~"$block"'
PAIR, BESIDE = "model, version, shadow", "{{model}}: {{shadow}} beside {{version}}"
R = "$__rate_interval"
GOOD_BAD = {"^2..$": "green", "^4..$": "yellow", "^429": "orange", "^5..$": "red"}


def quantiles(metric: str, by: str = "") -> list[Query]:
    """Median, 90th and 99th percentile of a histogram."""
    return [
        (f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{{ALL}{by}}}[{R}])))", f"p{100 * q:.0f}")
        for q in (0.5, 0.9, 0.99)
    ]


def mean(metric: str, by: str, selector: str) -> str:
    """Mean of a histogram's observations."""
    total, number = (f"sum by ({by}) (rate({metric}_{part}{{{selector}}}[{R}]))" for part in ("sum", "count"))
    return f"{total} / {number}"


ROWS: dict[str, list[Panel]] = {
    "Golden signals": [
        stat(
            "Replicas ready",
            "How many replicas take requests? Red: none.",
            f"sum(condconv_ready{{{ALL}}}) or vector(0)",
            steps=[(0, "red"), (1, "green")],
        ),
        stat(
            "Requests per second",
            "How much traffic is there?",
            f'sum(rate(condconv_requests_total{{{ALL},method="POST"}}[{R}])) or vector(0)',
            unit="reqps",
            steps=[(0, "blue")],
        ),
        stat(
            "Server errors",
            "Which share of requests failed through our fault? The objective is 0.1 %.",
            f'(sum(rate(condconv_requests_total{{{ALL},method="POST",code=~"5..",deadline!="caller"}}[{R}])) '
            f"or vector(0)) "
            f'/ (sum(rate(condconv_requests_total{{{ALL},method="POST"}}[{R}])) > 0) or vector(0)',
            unit="percentunit",
            steps=[(0, "green"), (0.001, "yellow"), (0.01, "red")],
        ),
        stat(
            "Image, 99th percentile",
            "How long do all but the slowest images take, from their bytes to their classes?",
            f'histogram_quantile(0.99, sum by (le) (rate(condconv_stage_seconds_bucket{{{ALL},stage="total"}}[{R}])))',
            unit="s",
            steps=[(0, "green"), (0.5, "yellow"), (1, "red")],
        ),
        stat(
            "Refused",
            "Which share of requests is refused since there are too many?",
            f'sum(rate(condconv_rejected_total{{{ALL},reason=~"queue_full|wait_too_long|too_many_connections",'
            f'deadline!="caller"}}[{R}])) '
            f'/ (sum(rate(condconv_requests_total{{{ALL},method="POST"}}[{R}])) > 0) or vector(0)',
            unit="percentunit",
            steps=[(0, "green"), (0.001, "yellow"), (0.01, "red")],
        ),
        stat(
            "Alerts firing",
            "Does anything need a person? docs/operations.md says what to do for each.",
            'count(ALERTS{alertname=~"Condconv.+",alertstate="firing"}) or vector(0)',
            steps=[(0, "green"), (1, "red")],
        ),
        lines(
            "Requests",
            "How much traffic is there, and how is it answered?",
            (f'sum by (code) (rate(condconv_requests_total{{{ALL},method="POST"}}[{R}]))', "{{code}}"),
            unit="reqps",
            stacked=True,
            colours=GOOD_BAD,
        ),
        lines(
            "Time of an image",
            "How long does an image take, from its bytes to its classes?",
            *quantiles("condconv_stage_seconds", ',stage="total"'),
            unit="s",
        ),
        lines(
            "Errors by kind",
            "Why do requests fail or get refused?",
            (
                f"sum by (reason, deadline) (rate(condconv_rejected_total{{{ALL}}}[{R}])) > 0 or vector(0)",
                "{{reason}} {{deadline}}",
            ),
            unit="reqps",
        ),
        lines(
            "Error budget, times too fast",
            "How fast are the error budgets used up? At 1 they just last the month; 14 wakes somebody.",
            ("condconv:request_errors:ratio_rate1h / 0.001", "availability, 1 h"),
            ("condconv:slow_images:ratio_rate1h / 0.01", "latency, 1 h"),
            ("condconv:request_errors:ratio_rate6h / 0.001", "availability, 6 h"),
            ("condconv:slow_images:ratio_rate6h / 0.01", "latency, 6 h"),
        ),
        lines(
            "Requests by route, 99th percentile",
            "How long do callers wait? Sending and reading included, so a slow client counts, too.",
            (
                f"histogram_quantile(0.99, sum by (route, le) (rate(condconv_request_seconds_bucket{{{ALL},"
                f'route!~"/livez|/readyz|/healthz|/metrics"}}[{R}])))',
                "{{route}}",
            ),
            unit="s",
        ),
        lines(
            "Images by outcome",
            "What becomes of the images?",
            (f"sum by (outcome) (rate(condconv_rows_total{{{IMAGES}}}[{R}]))", "{{outcome}}"),
            unit="ops",
            stacked=True,
            colours={"^answered$": "green"},
        ),
    ],
    "Batching": [
        lines(
            "Images waiting",
            "Is the service saturated? What is above the limit is refused.",
            (f"sum(condconv_queue_rows{{{ALL}}})", "waiting"),
            (f"sum(condconv_max_queue_rows{{{ALL}}})", "limit"),
            limit="limit",
        ),
        lines(
            "Predicted wait",
            "How long will an image wait that comes now?",
            (f"condconv_predicted_wait_seconds{{{ALL}}}", "{{instance}}"),
            unit="s",
        ),
        heatmap(
            "Rows per batch",
            "Does batching work, and is there room? Batches grow with the load.",
            f"sum by (le) (increase(condconv_batch_size_bucket{{{IMAGES}}}[{R}]))",
            unit="short",
        ),
        lines(
            "Mean rows per batch",
            "The same, by model.",
            (mean("condconv_batch_size", "model", IMAGES), "{{model}}"),
        ),
        lines(
            "Rows being computed",
            "How busy are the engines? Streams times rows per batch is the most.",
            (f"sum(avg_over_time(condconv_rows_in_flight{{{ALL}}}[{R}]))", "rows"),
            (f"sum(condconv_streams{{{ALL}}})", "streams"),
        ),
        lines(
            "Images accepted and ended",
            "Is any image lost? The two lines go together.",
            (f"sum(rate(condconv_rows_accepted_total{{{IMAGES}}}[{R}]))", "accepted"),
            (f"sum(rate(condconv_rows_total{{{IMAGES}}}[{R}]))", "ended"),
            unit="ops",
        ),
    ],
    "Stages of an image": [
        lines(
            "Mean by stage",
            "Where does the time go?",
            (
                mean("condconv_stage_seconds", "stage", f'{ALL},stage!="total"'),
                "{{stage}}",
            ),
            unit="s",
            stacked=True,
        ),
        lines(
            "99th percentile by stage",
            "What makes slow ones slow? Queue: too much traffic. Decode: large photos. Inference: neighbours.",
            (
                f"histogram_quantile(0.99, sum by (stage, le) (rate(condconv_stage_seconds_bucket{{{ALL}}}[{R}])))",
                "{{stage}}",
            ),
            unit="s",
        ),
        heatmap(
            "Time of an image, all of them",
            "Are there two kinds of images, quick and slow ones?",
            f'sum by (le) (increase(condconv_stage_seconds_bucket{{{ALL},stage="total"}}[{R}]))',
            unit="s",
        ),
    ],
    "Engine": [
        lines(
            "CPUs used",
            "Is there a CPU for each stream, and does it work?",
            (f"rate(process_cpu_seconds_total{{{ALL}}}[{R}])", "{{instance}}"),
            (f"max(condconv_streams{{{ALL}}})", "streams"),
            limit="streams",
        ),
        lines(
            "Memory",
            "How near is the end of it?",
            (f"process_resident_memory_bytes{{{ALL}}}", "{{instance}}"),
            (f"min(condconv_memory_limit_bytes{{{ALL}}})", "limit"),
            unit="bytes",
            limit="limit",
        ),
        lines(
            "Images per second and replica",
            "Does each replica get its share?",
            (f'sum by (instance) (rate(condconv_rows_total{{{IMAGES},outcome="answered"}}[{R}]))', "{{instance}}"),
            unit="ops",
        ),
        lines(
            "Engine faults",
            "Does the engine misbehave, or is there too little memory?",
            (f"sum(increase(condconv_stream_stalls_total{{{ALL}}}[{R}]))", "hung"),
            (
                f"sum by (reason) (increase(condconv_batch_failures_total{{{IMAGES}}}[{R}])) or vector(0)",
                "batch halved {{reason}}",
            ),
            (f"sum(increase(condconv_padding_rows_total{{{ALL}}}[{R}]))", "padding rows"),
            (
                f"sum by (process) (increase(condconv_worker_restarts_total{{{ALL}}}[{R}])) or vector(0)",
                "process restarted {{process}}",
            ),
        ),
        lines(
            "Open files and connections",
            "Do connections pile up?",
            (f"process_open_fds{{{ALL}}}", "{{instance}}"),
            (f"min(process_max_fds{{{ALL}}})", "limit"),
            limit="limit",
        ),
        lines(
            "Restarts",
            "When did replicas start? Each jump is one.",
            (f"time() - process_start_time_seconds{{{ALL}}}", "{{instance}}"),
            unit="s",
        ),
    ],
    "Response cache": [
        lines(
            "Images answered without computing",
            "Does the cache pay? shared: computed for an equal image at the same time. Without a cache these are zero.",
            *(
                (
                    f'sum(rate(condconv_cache_rows_total{{{ALL},result="{result}"}}[{R}])) '
                    f"/ (sum(rate(condconv_cache_rows_total{{{ALL}}}[{R}])) > 0) or vector(0)",
                    result,
                )
                for result in ("hit", "shared")
            ),
            unit="percentunit",
        ),
        lines(
            "Cached answers",
            "Is the cache full? Memory, beside the most that it may take (dashed).",
            (f"max(condconv_cache_bytes{{{ALL}}})", "fullest replica"),
            (f"max(condconv_cache_max_bytes{{{ALL}}})", "limit"),
            unit="bytes",
            limit="limit",
        ),
        lines(
            "Answers that left the cache",
            "Is it too small? If many leave for newer ones while few are found, it is, or images rarely come again.",
            (f"sum by (reason) (rate(condconv_cache_evictions_total{{{ALL}}}[{R}]))", "{{reason}}"),
            unit="ops",
        ),
    ],
    "Models": [
        table(
            "Served versions",
            "What is being served, by how many replicas, and by which engine?",
            f"count by (model, version, architecture, engine, precision, device) (condconv_model_info{{{IMAGES}}})",
            columns=("model", "version", "architecture", "engine", "precision", "device"),
        ),
        table(
            "Native kernels",
            "What do native kernels do for each version, and why might one be slower than it could be?",
            f"count by (model, version, state, isa) (condconv_native_info{{{IMAGES}}})",
            columns=("model", "version", "state", "isa"),
        ),
        table(
            "States",
            "Which versions serve, load, wait or failed, and which serve from memory alone (stale)?",
            f"count by (model, version, state) (condconv_model_version_state{{{IMAGES}}} == 1)",
            columns=("model", "version", "state"),
        ),
        lines(
            "Images by version",
            "Does a canary get its share?",
            (f"sum by (model, version) (rate(condconv_version_rows_total{{{IMAGES}}}[{R}]))", "{{model}} {{version}}"),
            unit="ops",
            stacked=True,
        ),
        lines(
            "Versions loaded and unloaded",
            "Did a new version arrive, or was it broken?",
            (f"sum by (outcome) (increase(condconv_model_loads_total{{{IMAGES}}}[{R}]))", "{{outcome}}"),
            colours={"^failed$": "red"},
        ),
        lines(
            "Time to load a version",
            "How long does a start or a swap take?",
            (f"max by (model, version) (condconv_model_load_seconds{{{IMAGES}}})", "{{model}} {{version}}"),
            (
                f"sum(increase(condconv_model_swap_seconds_sum{{{ALL}}}[{R}])) "
                f"/ (sum(increase(condconv_model_swap_seconds_count{{{ALL}}}[{R}])) > 0) or vector(0)",
                "swaps",
            ),
            unit="s",
        ),
    ],
    "Versions on copies of requests": [
        lines(
            "Agreement",
            "How often does a version that gets copies say the same as the one that answers? 1 is always.",
            (
                f"sum by ({PAIR}) (rate(condconv_shadow_agreement_total{{{IMAGES}}}[{R}])) "
                f'/ sum by ({PAIR}) (rate(condconv_shadow_rows_total{{{IMAGES},outcome="compared"}}[{R}]))',
                BESIDE,
            ),
            unit="percentunit",
            w=6,
        ),
        lines(
            "Distance of answers",
            "How far apart are their probabilities, or scores? 0 is equal.",
            (mean("condconv_shadow_distance", PAIR, IMAGES), BESIDE),
            w=6,
        ),
        lines(
            "Distance of routing",
            "Do the two versions route images in the same way? 0 is equal.",
            (mean("condconv_shadow_routing_distance", PAIR, IMAGES), BESIDE),
            w=6,
        ),
        lines(
            "Copies",
            "How many images are the other panels made of, and why are copies left out?",
            (f"sum by (outcome) (rate(condconv_shadow_rows_total{{{IMAGES}}}[{R}]))", "{{outcome}}"),
            unit="ops",
            stacked=True,
            w=6,
        ),
    ],
    "Detectors": [
        lines(
            "Objects per image",
            "How much do the images show? Only detectors have these panels.",
            (mean("condconv_detections", "model", IMAGES), "{{model}}"),
            w=6,
        ),
        lines(
            "Images in which nothing is found",
            "Which share of the images shows none of a detector's classes? A camera that is covered brings it to 1.",
            (
                f'sum by (model) (rate(condconv_detections_bucket{{{IMAGES},le="0.0"}}[{R}])) '
                f"/ sum by (model) (rate(condconv_detections_count{{{IMAGES}}}[{R}]))",
                "{{model}}",
            ),
            unit="percentunit",
            w=6,
        ),
        lines(
            "Mean score",
            "Is a detector as sure as it used to be? Callers' thresholds count, too.",
            (mean("condconv_detection_score", "model", IMAGES), "{{model}}"),
            w=6,
        ),
        heatmap(
            "Scores",
            "Are there sure and unsure objects? Choose a model above.",
            f"sum by (le) (increase(condconv_detection_score_bucket{{{IMAGES}}}[{R}]))",
            unit="short",
            w=6,
        ),
    ],
    "Experts and drift": [
        lines(
            "Drift, at the block where it is most",
            "Is the traffic still like the images that the model is known for? Above the limit it isn't.",
            (
                f'max by (model, version) (condconv_routing_drift{{{BLOCKS},measure="psi"}})',
                "{{model}} {{version}}",
            ),
            (f'max(condconv_routing_drift{{{BLOCKS},measure="psi_alert"}})', "limit"),
            limit="limit",
        ),
        lines(
            "Drift by block",
            "Which blocks see other images than usual?",
            (f'max by (model, block) (condconv_routing_drift{{{BLOCKS},measure="psi"}})', "{{model}} {{block}}"),
        ),
        lines(
            "Entropy by block",
            "Do blocks choose between their experts? 0 is one expert, 1 is all alike.",
            (f"avg by (model, block) (condconv_routing_entropy{{{BLOCKS}}})", "{{model}} {{block}}"),
        ),
        lines(
            "Mean weight by expert",
            "Which experts does the traffic use? Choose a block above.",
            (mean("condconv_routing_weight", "model, block, expert", BLOCKS), "{{block}} expert {{expert}}"),
            w=12,
        ),
        heatmap(
            "Routing weights",
            "Do weights sit at 0 and 1 (experts chosen) or in the middle (experts mixed)? Choose a block above.",
            f"sum by (le) (increase(condconv_routing_weight_bucket{{{BLOCKS}}}[{R}]))",
            unit="short",
            w=12,
        ),
    ],
}
