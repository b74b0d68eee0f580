import { describe, expect, test } from "vitest";
import { loadConfig, natsUrls } from "./config.ts";

const load = (natsUrl: string) => loadConfig(["--nats-url", natsUrl], {});

describe("the address of an existing NATS", () => {
  test("may be that of each server of a cluster", () => {
    const config = load("tls://a.example:4222, tls://b.example:4222");
    if (config === "help") throw new Error("it asked for help");
    expect(natsUrls(config.natsUrl!)).toEqual(["tls://a.example:4222", "tls://b.example:4222"]);
  });

  test.each(["nats://localhost:4222", "nats://127.0.0.1:4222,nats://127.9.9.9:4222", "nats://[::1]:4222"])(
    "%s may be spoken to in the clear",
    (url) => expect(load(url)).toMatchObject({ natsUrl: url }),
  );

  test.each([
    "nats://a.example:4222",
    "nats://192.0.2.1:4222",
    "nats://127.0.0.1.a.example:4222", // a name like any other
    "nats://127.a.example:4222",
    "tls://a.example:4222,nats://b.example:4222", // each is looked at
    "nats://127.0.0.1:4222,nats://b.example:4222",
  ])("%s is refused: there is no plaintext mode off loopback", (url) => {
    expect(() => load(url)).toThrow(/natsUrl: there is no plaintext mode off loopback/);
  });

  test.each(["http://a.example:4222", "a.example:4222", "tls://a.example:4222,", ""])("%j is none", (url) => {
    expect(() => load(url)).toThrow(/natsUrl: must be nats:/);
  });
});
