import { expect, test } from "vitest";
import { addressOf, hostAndPort, natsAddress } from "./address.ts";
import { isExempt, ProxyConfig, proxyOf, proxyOfEnvironment } from "./proxy.ts";

test.each([
  ["gw.example:7443", "gw.example", 7443],
  ["192.0.2.7:7443", "192.0.2.7", 7443],
  ["[2001:db8::7]:7443", "2001:db8::7", 7443],
])("%s is taken apart and put together again", (text, host, port) => {
  expect(hostAndPort(text)).toEqual({ host, port });
  expect(addressOf({ host, port })).toBe(text);
});

test.each([
  ["nats://n1.example:4223", "nats", "n1.example", 4223],
  ["tls://[::1]:4222", "tls", "::1", 4222],
  ["n1.example", "nats", "n1.example", 4222],
  ["[::1]", "nats", "::1", 4222],
  ["192.0.2.7:4000", "nats", "192.0.2.7", 4000],
])("the server %s of NATS is found", (text, scheme, host, port) => {
  expect(natsAddress(text)).toEqual({ scheme, address: { host, port } });
});

test.each<[string, string, boolean]>([
  ["*", "gw.example:7443", true],
  ["gw.example", "GW.example:7443", true],
  ["gw.example:7443", "gw.example:7443", true],
  ["gw.example:443", "gw.example:7443", false],
  [".example", "gw.example:7443", true],
  ["example", "gw.example:7443", true],
  ["*.example", "gw.example:7443", true],
  ["ample", "gw.example:7443", false],
  ["10.0.0.0/8", "10.9.8.7:7443", true],
  ["10.0.0.0/8", "11.9.8.7:7443", false],
  ["10.0.0.0/99", "10.9.8.7:7443", false],
  ["10.9.8.7", "10.9.8.7:7443", true],
  ["::1", "[::1]:7443", true],
  ["[::1]:7443", "[::1]:7443", true],
  ["2001:db8::/32", "[2001:db8::7]:7443", true],
  ["2001:db8::/32", "[2001:db9::7]:7443", false],
  ["0.0.0.0/0", "[2001:db9::7]:7443", false],
])("noProxy %s exempts %s: %s", (entry, target, expected) => {
  expect(isExempt([entry], hostAndPort(target))).toBe(expected);
});

test("HTTPS_PROXY counts with user and password, and never for this host itself", () => {
  const proxy = proxyOfEnvironment({
    HTTPS_PROXY: "http://ada:p%40ss@[2001:db8::1]:3128",
    no_proxy: "corp.example, 10.0.0.0/8",
  })!;
  expect(proxy).toMatchObject({
    secure: false,
    address: { host: "2001:db8::1", port: 3128 },
    username: "ada",
    password: "p@ss",
  });
  for (const local of ["localhost:1", "127.0.0.9:1", "[::1]:1", "x.corp.example:1", "10.1.1.1:1"])
    expect(isExempt(proxy.noProxy, hostAndPort(local))).toBe(true);
  expect(isExempt(proxy.noProxy, hostAndPort("gw.example:7443"))).toBe(false);
  expect(proxyOfEnvironment({ https_proxy: "proxy.example:3128" })?.address.port).toBe(3128);
  expect(proxyOfEnvironment({ HTTPS_PROXY: "" })).toBeUndefined();
  expect(() => proxyOfEnvironment({ HTTPS_PROXY: "socks5://proxy.example" })).toThrow(/HTTPS_PROXY/);
});

test("a proxy of the configuration has its ports, and keeps no password in its URL", () => {
  expect(proxyOf(ProxyConfig.parse({ url: "https://proxy.example" })).address.port).toBe(443);
  expect(proxyOf(ProxyConfig.parse({ url: "http://proxy.example" })).address.port).toBe(80);
  for (const bad of [
    { url: "http://a:b@proxy.example" },
    { url: "socks5://proxy.example" },
    { url: "http://proxy.example/path" },
    { url: "http://proxy.example", passwordFile: "p" },
  ])
    expect(ProxyConfig.safeParse(bad).success).toBe(false);
});
