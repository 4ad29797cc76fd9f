// Reads the few metrics that the charts need from the text format of Prometheus.

const WANTED = /^(condconv_rows_total|condconv_batch_size_(?:sum|count|bucket)|condconv_stage_seconds_bucket|condconv_queue_rows|condconv_rows_in_flight)(?:\{(.*)\})? (\S+)/;

/** Figures of one moment; counters count since the server started. */
export function read(text) {
  const figures = { answered: 0, failed: 0, batchRows: 0, batches: 0, batchBuckets: new Map(), totalBuckets: new Map(), queue: 0, inFlight: 0 };
  for (const line of text.split("\n")) {
    if (!line.startsWith("condconv_")) continue;
    const found = WANTED.exec(line);
    if (!found) continue;
    const [, name, labels = "", number] = found;
    const value = Number(number);
    const label = (wanted) => new RegExp(`(?:^|,)${wanted}="([^"]*)"`).exec(labels)?.[1];
    const add = (buckets) => buckets.set(Number(label("le").replace("+Inf", "Infinity")), (buckets.get(Number(label("le").replace("+Inf", "Infinity"))) ?? 0) + value);
    if (name === "condconv_rows_total") figures[label("outcome") === "answered" ? "answered" : "failed"] += value;
    else if (name === "condconv_batch_size_sum") figures.batchRows += value;
    else if (name === "condconv_batch_size_count") figures.batches += value;
    else if (name === "condconv_batch_size_bucket") add(figures.batchBuckets);
    else if (name === "condconv_stage_seconds_bucket" && label("stage") === "total") add(figures.totalBuckets);
    else if (name === "condconv_queue_rows") figures.queue = value;
    else if (name === "condconv_rows_in_flight") figures.inFlight = value;
  }
  return figures;
}

/** What a cumulative histogram gained between two moments: `[upper bound, gain]` by bound. */
export function gain(before, after) {
  return [...after].sort(([a], [b]) => a - b).map(([bound, total]) => [bound, total - (before.get(bound) ?? 0)]);
}

/** A quantile of a gain, by going straight through its bucket as Prometheus does; null if nothing was counted. */
export function quantile(share, gained) {
  const total = gained.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return null;
  const rank = share * total;
  let [lower, below] = [0, 0];
  for (const [bound, cumulative] of gained) {
    if (cumulative >= rank) {
      if (bound === Infinity) return lower;
      return cumulative === below ? bound : lower + ((bound - lower) * (rank - below)) / (cumulative - below);
    }
    [lower, below] = [bound, cumulative];
  }
  return lower;
}
