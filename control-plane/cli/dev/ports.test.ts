import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { afterEach, beforeEach, expect, test } from "vitest";
import { choosePort } from "./ports.ts";

const taken = createServer();
let takenPort: number;

beforeEach(async () => {
  taken.listen(0, "127.0.0.1");
  await once(taken, "listening");
  takenPort = (taken.address() as AddressInfo).port;
});

afterEach(async () => {
  taken.close();
  await once(taken, "close");
});

test("a usual port that is taken gives way to a free one", async () => {
  const port = await choosePort({ preferred: takenPort, what: "the API" });
  expect(port).toBeGreaterThan(0);
  expect(port).not.toBe(takenPort);
});

test("a port that was asked for is taken or refused, never replaced", async () => {
  const free = await choosePort({ preferred: takenPort, what: "the API" });
  expect(await choosePort({ fixed: free, preferred: takenPort, what: "the API" })).toBe(free);
  await expect(choosePort({ fixed: takenPort, preferred: free, what: "the API" })).rejects.toMatchObject({
    code: "unavailable",
    message: expect.stringContaining(`port ${takenPort} for the API is taken`),
  });
});
