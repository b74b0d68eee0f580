/** Pages over lists that are held in memory, by the key of the last item seen: stable while the list changes. */
import { InsituError } from "../../shared/errors.ts";
import type { Page } from "./services.ts";

/**
 * One page of `items` in the order of their keys.
 *
 * @throws InsituError `request.invalid` for a cursor that this list did not give out.
 */
export function pageByKey<T>(
  items: readonly T[],
  keyOf: (item: T) => string,
  query: { list: string; limit: number; cursor?: string | undefined },
): Page<T> {
  const after = query.cursor === undefined ? null : readCursor(query.list, query.cursor);
  const rest = items
    .map((item) => ({ key: keyOf(item), item }))
    .filter(({ key }) => after === null || key > after)
    .sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
  const taken = rest.slice(0, query.limit);
  const last = taken.at(-1);
  const more = rest.length > taken.length && last !== undefined;
  return {
    items: taken.map(({ item }) => item),
    nextCursor: more ? writeCursor(query.list, last.key) : null,
  };
}

function writeCursor(list: string, key: string): string {
  return Buffer.from(JSON.stringify([list, key])).toString("base64url");
}

function readCursor(list: string, cursor: string): string {
  try {
    const value: unknown = JSON.parse(Buffer.from(cursor, "base64url").toString());
    if (Array.isArray(value) && value[0] === list && typeof value[1] === "string") return value[1];
  } catch {
    // Not JSON: the same answer as for any other text that is no cursor.
  }
  throw new InsituError(
    "request.invalid",
    `the cursor is not one that the list of ${list} gave out; start without one`,
  );
}
