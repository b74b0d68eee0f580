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

describe("the one port for agents", () => {
  test.each([
    ["0.0.0.0:443", { host: "0.0.0.0", port: 443 }],
    ["[::]:8443", { host: "::", port: 8443 }],
    ["insitu.example.org:0", { host: "insitu.example.org", port: 0 }],
  ])("%s is an address and a port, from the flag or the environment", (text, onePort) => {
    expect(loadConfig(["--one-port", text], {})).toMatchObject({ onePort });
    expect(loadConfig([], { INSITU_ONE_PORT: text })).toMatchObject({ onePort });
  });

  test.each(["443", ":443", "0.0.0.0", "0.0.0.0:65536", "::443", "[0.0.0.0:443"])("%s is none", (text) => {
    expect(() => loadConfig(["--one-port", text], {})).toThrow(/onePort: must be like 0\.0\.0\.0:443/);
  });

  test("is not there unless it is asked for", () => {
    expect(loadConfig([], {})).toHaveProperty("onePort", undefined);
  });
});

describe("the number of servers that keep each stream", () => {
  const CLUSTER = "nats://127.0.0.1:1,nats://127.0.0.1:2,nats://127.0.0.1:3";

  test("comes from the flag, else from the environment, else from the streams that exist", () => {
    const env = { INSITU_STREAM_REPLICAS: "3", INSITU_NATS_URL: CLUSTER };
    expect(loadConfig([], env)).toMatchObject({ streamReplicas: 3 });
    expect(loadConfig(["--stream-replicas", "5"], env)).toMatchObject({ streamReplicas: 5 });
    expect(load(CLUSTER)).toHaveProperty("streamReplicas", undefined);
  });

  test.each(["0", "2", "4", "7", "three"])("%s is refused", (text) => {
    expect(() => loadConfig(["--nats-url", CLUSTER, "--stream-replicas", text], {})).toThrow(
      /streamReplicas: must be 1, 3 or 5/,
    );
  });

  test("more than one needs a cluster", () => {
    expect(() => loadConfig(["--stream-replicas", "3"], {})).toThrow(/streamReplicas: .*--nats-url/);
  });
});
