/** Cycles in a graph of needs. */

interface Visit {
  step: string;
  /** Index of the need that is looked at next. */
  next: number;
}

/**
 * Cycles that share no step, each as its steps in the order of needing; none is found where there is none, and one
 * at least where there is any. Names that are no key of `needs` are left out.
 *
 * Linear, and without recursion: a chain may have twenty thousand links.
 */
export function findCycles(needs: ReadonlyMap<string, readonly string[]>): string[][] {
  const cycles: string[][] = [];
  const done = new Set<string>();
  for (const root of needs.keys()) {
    if (!done.has(root)) searchFrom(root, needs, done, cycles);
  }
  return cycles;
}

function searchFrom(
  root: string,
  needs: ReadonlyMap<string, readonly string[]>,
  done: Set<string>,
  cycles: string[][],
): void {
  const path: Visit[] = [{ step: root, next: 0 }];
  const depths = new Map([[root, 0]]);
  // Stretches of the path that are in a cycle already told, so that overlap is seen without looking along it.
  const told: { from: number; to: number }[] = [];
  for (let top = path.at(-1); top !== undefined; top = path.at(-1)) {
    const need = needs.get(top.step)?.[top.next++];
    if (need === undefined) {
      done.add(top.step);
      depths.delete(top.step);
      path.pop();
      const last = told.at(-1);
      if (last !== undefined) last.to = Math.min(last.to, path.length - 1);
      if (last !== undefined && last.to < last.from) told.pop();
      continue;
    }
    const depth = depths.get(need);
    if (depth !== undefined) {
      if ((told.at(-1)?.to ?? -1) >= depth) continue;
      cycles.push(path.slice(depth).map((visit) => visit.step));
      told.push({ from: depth, to: path.length - 1 });
    } else if (!done.has(need) && needs.has(need)) {
      depths.set(need, path.length);
      path.push({ step: need, next: 0 });
    }
  }
}
