/** What a message must not do when it comes twice, in another order or very late: make a difference. */
import { expect, test } from "vitest";

export interface Deliveries<World> {
  /** A world of its own for each case, at the moment before the message. */
  world(): Promise<World & AsyncDisposable>;
  /** As it should come. */
  sound(world: World): Promise<unknown>;
  /** The same message two times. */
  twice(world: World): Promise<unknown>;
  /** Changed places with its neighbours. */
  order(world: World): Promise<unknown>;
  /** `sound`, and then again when the world has moved on: after a newer epoch, or after the end. */
  late(world: World): Promise<unknown>;
  /** What counts, of one world: without times, and names that chance has given. */
  state(world: World): unknown;
}

const CASES = [
  ["sent twice", "twice"],
  ["in another order", "order"],
  ["very late", "late"],
] as const;

/**
 * Declares a test a case: the state is then what a sound delivery leaves. `kind` is as `test/message-kinds.test.ts` names it.
 *
 * A sound delivery has to leave a trace in the state, or a comparison would say nothing.
 */
export function harmless<World>(kind: string, deliveries: Deliveries<World>): void {
  const { world, sound, state } = deliveries;
  test.each(CASES)(`${kind}, %s`, async (_, name) => {
    await using expected = await world();
    const before = await state(expected);
    await sound(expected);
    const after = await state(expected);
    expect(after, "a sound delivery leaves no trace").not.toEqual(before);
    await using actual = await world();
    await deliveries[name](actual);
    expect(await state(actual)).toEqual(after);
  });
}
