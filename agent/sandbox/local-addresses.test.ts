import { expect, test } from "vitest";
import { isLocal } from "./local-addresses.ts";

const OWN = ["10.1.2.3", "2001:db8::5"];

test.each([
  "127.0.0.1",
  "127.77.1.1",
  "0.0.0.0",
  "169.254.169.254",
  "100.100.100.200",
  "224.0.0.1",
  "255.255.255.255",
  "10.1.2.3",
  "::",
  "::1",
  "fe80::1%eth0",
  "fd00:ec2::254",
  "ff02::1",
  "2001:db8::5",
  "2001:0db8:0:0:0:0:0:5",
  "::ffff:127.0.0.1",
  "::ffff:a9fe:a9fe",
  "::ffff:10.1.2.3",
  "::127.0.0.1",
  "::ffff:0:127.0.0.1",
  "64:ff9b::127.0.0.1",
  "64:ff9b:1::169.254.169.254",
  "2002:7f00:1::1",
])("%s is of the host itself, or for it alone", (address) => {
  expect(isLocal(address, OWN)).toBe(true);
});

test.each([
  "10.1.2.4",
  "192.168.0.1",
  "8.8.8.8",
  "2001:db8::6",
  "fd12::1",
  "::ffff:8.8.8.8",
  "64:ff9b::8.8.8.8",
])("%s is another's", (address) => {
  expect(isLocal(address, OWN)).toBe(false);
});
