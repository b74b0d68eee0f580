import { expect, test } from "vitest";
import { hostsFile, networkEnvironment, planNetwork } from "./network-plan.ts";

const plan = planNetwork({
  allow: ["10.20.0.7:5432", "[2001:db8::7]:443", "api.example:443", "api.example:8443", "db.example:5432"],
  mayBeLocal: ({ host }) => host === "10.20.0.7",
  host: { nsenter: "/usr/bin/nsenter", mode: "drop" },
});

test("each host has an address of its own, and each port of it a listener there", () => {
  expect(plan.targets.map(({ listen }) => `${listen.address}:${listen.port}`)).toEqual([
    "127.77.1.1:5432",
    "127.77.1.2:443",
    "127.77.1.3:443",
    "127.77.1.3:8443",
    "127.77.1.4:5432",
  ]);
  expect(plan.targets.filter(({ mayBeLocal }) => mayBeLocal)).toHaveLength(1);
});

test("names are in the box's file of hosts, once, and addresses are not", () => {
  expect(hostsFile(plan)).toBe(
    "127.0.0.1 localhost\n::1 localhost\n127.77.1.3 api.example\n127.77.1.4 db.example\n",
  );
});

test("the environment names the proxy, passes it over for what has a listener, and says where addresses listen", () => {
  expect(networkEnvironment(plan)).toMatchObject({
    https_proxy: "http://127.77.0.1:3128",
    ALL_PROXY: "socks5h://127.77.0.1:3128",
    NO_PROXY: "localhost,127.0.0.1,::1,127.77.1.1,127.77.1.2,api.example,db.example",
    INSITU_CONNECT_10_20_0_7_5432: "127.77.1.1:5432",
    INSITU_CONNECT_2001_DB8__7_443: "127.77.1.2:443",
  });
});
