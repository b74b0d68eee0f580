/** "Did you mean": the known name that is nearest to a mistyped one. */

/** Longer names than this are not compared: no resource has one, and the cost is quadratic. */
const COMPARED_MAX = 63;

/**
 * The candidate at the smallest distance, when it is near enough to be meant: a third of the letters at most.
 * Of equals, the first.
 */
export function nearestName(name: string, candidates: Iterable<string>): string | undefined {
  if (name.length === 0 || name.length > COMPARED_MAX) return undefined;
  const wanted = name.toLowerCase();
  let limit = Math.max(1, Math.floor(name.length / 3));
  let best: string | undefined;
  for (const candidate of candidates) {
    if (candidate === name || Math.abs(candidate.length - name.length) > limit) continue;
    const distance = editDistance(wanted, candidate.toLowerCase());
    if (distance > limit || (best !== undefined && distance === limit)) continue;
    best = candidate;
    limit = distance;
    if (distance === 0) break;
  }
  return best;
}

/** As the hint of an error; nothing when no candidate is near. */
export function didYouMean(name: string, candidates: Iterable<string>): { hint?: string } {
  const nearest = nearestName(name, candidates);
  return nearest === undefined ? {} : { hint: `did you mean '${nearest}'?` };
}

/** How many of those that there are a message names. */
const NAMED_MAX = 10;

/**
 * What is said wherever a name is not known: what was probably meant, else what there is.
 *
 * @param asked.within where it was looked for, when not everywhere: "run 01k9"
 * @param asked.known in the order in which they are shown
 */
export function unknownName(asked: {
  kind: string;
  name: string;
  known: readonly string[];
  within?: string;
}): string {
  const { kind, name, known, within } = asked;
  // What is no plain word could be read as a part of the sentence.
  const shown = /^[\w./:-]+$/.test(name) ? name : JSON.stringify(name);
  return `there is no ${kind} ${shown}${within === undefined ? "" : ` in ${within}`}; ${insteadOf(name, known)}`;
}

function insteadOf(name: string, known: readonly string[]): string {
  const nearest = nearestName(name, known);
  if (nearest !== undefined) return `did you mean '${nearest}'?`;
  if (known.length === 0) return "there is none";
  const more = known.length > NAMED_MAX ? ` and ${known.length - NAMED_MAX} more` : "";
  return `there ${known.length === 1 ? "is" : "are"} ${known.slice(0, NAMED_MAX).join(", ")}${more}`;
}

/** Damerau–Levenshtein distance in its restricted form: an exchange of neighbours counts as one edit. */
export function editDistance(one: string, other: string): number {
  // Generated names differ at one end only, and there may be twenty thousand of them.
  let start = 0;
  while (start < one.length && one[start] === other[start]) start++;
  let end = 0;
  const rest = Math.min(one.length, other.length) - start;
  while (end < rest && one[one.length - 1 - end] === other[other.length - 1 - end]) end++;
  const a = one.slice(start, one.length - end);
  const b = other.slice(start, other.length - end);
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let cost = Math.min((last[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (last[j - 1] ?? 0) + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        cost = Math.min(cost, (beforeLast[j - 2] ?? 0) + 1);
      }
      row.push(cost);
    }
    beforeLast = last;
    last = row;
  }
  return last[b.length] ?? 0;
}
