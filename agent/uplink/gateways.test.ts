import { join } from "node:path";
import { expect, test } from "vitest";
import { testDirectory } from "../agent.fixture.ts";
import { Gateways } from "./gateways.ts";

test("goes round the address of the join token and what welcomes have said, also after a restart", () => {
  using directory = testDirectory();
  const file = join(directory.path, "gateways.json");
  const gateways = new Gateways("a:1", file);
  gateways.advance();
  expect(gateways.current).toBe("a:1");
  gateways.learn(["b:1", "a:1", "c:1"]);
  expect(gateways.current).toBe("a:1");
  const seen = [1, 2, 3].map(() => {
    gateways.advance();
    return gateways.current;
  });
  expect(seen).toEqual(["b:1", "c:1", "a:1"]);
  const again = new Gateways("a:1", file);
  again.advance();
  expect(again.current).toBe("b:1");
});

test("keeps what it knows when a welcome says nothing, and stays where it is when it says more", () => {
  using directory = testDirectory();
  const gateways = new Gateways("a:1", join(directory.path, "gateways.json"));
  gateways.learn(["b:1"]);
  gateways.advance();
  gateways.learn([]);
  expect(gateways.current).toBe("b:1");
  gateways.learn(["c:1", "b:1"]);
  expect(gateways.current).toBe("b:1");
});
