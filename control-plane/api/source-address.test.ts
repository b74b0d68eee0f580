import { describe, expect, test } from "vitest";
import { sourceAddress, trustedProxies } from "./source-address.ts";

describe("the address of a request", () => {
  const trusted = trustedProxies(["10.0.0.0/8", "2001:db8::1"]);

  test.each<[string, string, string | undefined, string]>([
    ["nobody is trusted to speak for another", "192.0.2.7", "198.51.100.1", "192.0.2.7"],
    ["a proxy says whom it was called by", "10.1.2.3", "198.51.100.1", "198.51.100.1"],
    ["what the caller wrote itself stands before that", "10.1.2.3", "1.2.3.4, 198.51.100.1", "198.51.100.1"],
    ["two proxies in a row", "10.1.2.3", "1.2.3.4, 198.51.100.1, 10.9.9.9", "198.51.100.1"],
    ["a proxy over IPv6", "2001:db8::1", "198.51.100.1", "198.51.100.1"],
    ["a socket for both families", "::ffff:10.1.2.3", "::ffff:198.51.100.1", "198.51.100.1"],
    ["a proxy that says nothing", "10.1.2.3", undefined, "10.1.2.3"],
    ["what is no address", "10.1.2.3", "198.51.100.1, unknown", "10.1.2.3"],
  ])("%s", (_what, remote, forwarded, expected) => {
    expect(sourceAddress(remote, forwarded, trusted)).toBe(expected);
  });

  test.each(["", "10.0.0.0/", "10.0.0.0/33", "proxy.example", "10.0.0/8", "::1/129", "10.0.0.0/8x"])(
    "%j is no network to trust",
    (text) => {
      expect(() => trustedProxies([text])).toThrow(/neither an address nor a network/);
    },
  );
});
