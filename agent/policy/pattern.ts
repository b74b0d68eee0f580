/**
 * Whether the whole text is what the pattern says: `*` stands for any characters, none included, everything else for
 * itself. Takes time in proportion to the product of the lengths, whatever somebody sends.
 */
export function matches(pattern: string, text: string): boolean {
  let at = 0;
  let p = 0;
  let star = -1;
  let resume = 0;
  while (at < text.length) {
    // Before what stands for itself: a `*` in the text is no reason to take the one of the pattern literally.
    if (pattern[p] === "*") {
      star = p++;
      resume = at;
    } else if (p < pattern.length && pattern[p] === text[at]) {
      p++;
      at++;
    } else if (star >= 0) {
      p = star + 1;
      at = ++resume;
    } else return false;
  }
  while (pattern[p] === "*") p++;
  return p === pattern.length;
}

export function matchesAny(patterns: readonly string[], text: string): boolean {
  return patterns.some((pattern) => matches(pattern, text));
}
