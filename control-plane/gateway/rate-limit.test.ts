import { describe, expect, test } from "vitest";
import { networkOf, RateLimit } from "./rate-limit.ts";

describe("the rate limit", () => {
  test("lets a burst through, then as much as comes back", () => {
    const limit = new RateLimit({ burst: 3, refillMs: 100, maxAddresses: 10 });
    const took = [0, 0, 0, 0, 50, 100, 101].map((now) => limit.take("10.0.0.1:4000", now));
    expect(took).toEqual([true, true, true, false, false, true, false]);
  });

  test("counts an address over all its ports, and others apart", () => {
    const limit = new RateLimit({ burst: 1, refillMs: 1_000, maxAddresses: 10 });
    expect(limit.take("10.0.0.1:1", 0)).toBe(true);
    expect(limit.take("10.0.0.1:2", 0)).toBe(false);
    expect(limit.take("10.0.0.2:1", 0)).toBe(true);
  });

  test("remembers a bounded number of addresses", () => {
    const limit = new RateLimit({ burst: 1, refillMs: 1_000, maxAddresses: 2 });
    for (const host of [1, 2, 3]) limit.take(`10.0.0.${host}:1`, 0);
    expect(limit.take("10.0.0.3:1", 0)).toBe(false);
    expect(limit.take("10.0.0.1:1", 0)).toBe(true);
  });

  test("never falls below empty when it punishes", () => {
    const limit = new RateLimit({ burst: 2, refillMs: 100, maxAddresses: 2 });
    limit.take("a:1", 0);
    limit.punish("a:1", 50);
    expect(limit.take("a:1", 100)).toBe(true);
  });

  test.each([
    ["192.0.2.7:50051", "192.0.2.7"],
    ["::ffff:192.0.2.7:50051", "::ffff:192.0.2.7"],
    ["2001:db8:1:2:3:4:5:6:50051", "2001:db8:1:2::/64"],
    ["2001:db8:1:2::9:50051", "2001:db8:1:2::/64"],
    ["2001:db8::9:50051", "2001:db8:0:0::/64"],
    ["::1:50051", "0:0:0:0::/64"],
  ])("takes %s as %s", (peer, network) => {
    expect(networkOf(peer)).toBe(network);
  });
});
