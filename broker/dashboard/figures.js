/** What changes between two snapshots of a broker. */

/** What happened in between, a second where it is a rate; null if it is another run of the broker, or no time passed. */
export function ratesBetween(before, now) {
  const seconds = now.uptime_seconds - before.uptime_seconds;
  const came = now.counters.published - before.counters.published;
  if (seconds <= 0 || came < 0) return null;
  return {
    published: came / seconds,
    delivered: (now.counters.delivered - before.counters.delivered) / seconds,
    gaps: now.counters.gaps - before.counters.gaps,
    delayP50: quantile(before.delay_seconds, now.delay_seconds, 0.5),
    delayP99: quantile(before.delay_seconds, now.delay_seconds, 0.99),
    lagP99: quantile(before.loop_lag_seconds, now.loop_lag_seconds, 0.99),
  };
}

/** About how long that share of what came in between took at most, in seconds; null if nothing came. */
export function quantile(before, now, share) {
  const counts = now.counts.map((number, index) => Math.max(0, number - (before.counts[index] ?? 0)));
  const wanted = share * counts.reduce((sum, number) => sum + number, 0);
  if (!wanted) return null;
  let below = 0;
  for (let index = 0; index < now.buckets.length; index++) {
    const low = index ? now.buckets[index - 1] : 0;
    if (below + counts[index] >= wanted) return low + ((now.buckets[index] - low) * (wanted - below)) / counts[index];
    below += counts[index];
  }
  return now.buckets.at(-1);
}
