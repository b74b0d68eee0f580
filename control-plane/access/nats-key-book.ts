/**
 * Which signing keys of NATS there are, and what each is for now. Pure.
 *
 * A key is added, then activated, then the one before it is retired: between two steps whoever checks comes to know what
 * whoever signs will use. The first keys follow from the root; each later one from a secret of its own, so that whoever
 * has seen the root before a rotation signs nothing after it.
 */
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";

/** 32 bytes as base64url. */
const Secret = z.string().regex(/^[A-Za-z0-9_-]{43}$/);
const Generation = z.int().min(1);

const Key = z.strictObject({
  generation: Generation,
  /** Null: follows from the root. */
  secret: Secret.nullable(),
});

const KeySet = z
  .strictObject({
    /** That are accepted, the oldest first. */
    keys: z.array(Key).min(1).max(2),
    /** Generation of the one that signs. */
    signs: Generation,
    /** Seconds since the Unix epoch; null before the first change. */
    changedAtS: z.int().nullable(),
  })
  .refine(({ keys, signs }) => keys.some(({ generation }) => generation === signs), "no key signs");
export type KeySet = z.infer<typeof KeySet>;

/** As it lay there before there were rotations. */
const First = z.strictObject({
  v: z.literal(1),
  root: Secret,
  operatorKey: z.literal(1),
  accountKey: z.literal(1),
});

const Current = z.strictObject({ v: z.literal(2), root: Secret, operator: KeySet, accounts: KeySet });

/** `nats-operator.json`. Secret, all of it. */
export const KeyBook = z.union([
  Current,
  First.transform(({ root }): z.infer<typeof Current> => ({ v: 2, root, operator: FIRST, accounts: FIRST })),
]);
export type KeyBook = z.infer<typeof Current>;

const FIRST: KeySet = { keys: [{ generation: 1, secret: null }], signs: 1, changedAtS: null };

export type Rotated = "operator" | "accounts";

/** As it is written for a new installation: servers of before rotations read it too. */
export function firstBook(root: string): z.input<typeof First> {
  return { v: 1, root, operatorKey: 1, accountKey: 1 };
}

/** `steady` begins with a new key, `added` goes on by activating it, `activated` by retiring the former. */
export type RotationState = "steady" | "added" | "activated";

export function stateOf({ keys, signs }: KeySet): RotationState {
  if (keys.length === 1) return "steady";
  return keys[0]!.generation === signs ? "added" : "activated";
}

/**
 * The book after the step; the same one when the step has been made already.
 *
 * @param given.secret of a key that is added
 * @throws conflict when another step comes first
 */
export function rotated(
  book: KeyBook,
  what: Rotated,
  step: "add" | "activate" | "retire",
  given: { secret: string; nowS: number },
): KeyBook {
  const set = book[what];
  const state = stateOf(set);
  const last = set.keys.at(-1)!;
  // Its JWTs must be newer than those before them, also by a clock that was set back.
  const changedAtS = Math.max(given.nowS, (set.changedAtS ?? 0) + 1);
  switch (step) {
    case "add":
      if (state === "added") return book;
      if (state === "activated")
        throw new InsituError(
          "request.invalid",
          `the rotation of ${what} before this one has not ended: insitu nats rotate --what ${what} --retire`,
        );
      return {
        ...book,
        [what]: {
          ...set,
          keys: [last, { generation: last.generation + 1, secret: given.secret }],
          changedAtS,
        },
      };
    case "activate":
      if (state === "activated") return book;
      if (state === "steady") throw nothingBegun(what);
      return { ...book, [what]: { ...set, signs: last.generation, changedAtS } };
    case "retire":
      if (state === "steady" && last.generation > 1) return book;
      if (state === "steady") throw nothingBegun(what);
      if (state === "added")
        throw new InsituError(
          "request.invalid",
          `the new key of ${what} does not sign yet: insitu nats rotate --what ${what} --activate`,
        );
      return { ...book, [what]: { ...set, keys: [last], changedAtS } };
  }
}

/**
 * Whether servers are to take signing keys alone. The keys by which operator and accounts are named follow from the root
 * and stay; once no key in use follows from it any more, nothing that they sign has to be believed.
 */
export function isStrict({ operator, accounts }: KeyBook): boolean {
  return [operator, accounts].every(({ keys }) => keys[0]!.secret !== null);
}

function nothingBegun(what: Rotated): InsituError {
  return new InsituError(
    "request.invalid",
    `no rotation of ${what} has begun: insitu nats rotate --what ${what}`,
  );
}
