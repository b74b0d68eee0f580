/** The p-th percentile (0 to 100) by linear interpolation between ranks (Hyndman and Fan 1996, type 7). */
export function percentile(values: readonly number[], p: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const rank = ((sorted.length - 1) * p) / 100;
  const [low, high] = [Math.floor(rank), Math.ceil(rank)];
  return sorted[low]! + (sorted[high]! - sorted[low]!) * (rank - low);
}

export function median(values: readonly number[]): number {
  return percentile(values, 50);
}
