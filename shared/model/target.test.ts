import { expect, test } from "vitest";
import { parseTarget, targetText } from "./target.ts";

test.each([
  ["db.site.example:5432", "db.site.example:5432"],
  ["DB.Site.Example:5432", "db.site.example:5432"],
  ["my_db:1", "my_db:1"],
  ["10.20.0.7:65535", "10.20.0.7:65535"],
  ["[2001:DB8:0:0::7]:443", "[2001:db8::7]:443"],
  ["[::ffff:10.0.0.1]:443", "[::ffff:a00:1]:443"],
])("%s is the target %s", (written, kept) => {
  const target = parseTarget(written)!;
  expect(targetText(target)).toBe(kept);
  expect(parseTarget(kept)).toEqual(target);
});

test.each([
  "",
  "db.site.example",
  "db.site.example:0",
  "db.site.example:65536",
  "db.site.example:080",
  "*.example.org:443",
  "*:443",
  "localhost:80",
  "app.localhost:80",
  "127.1:80",
  "0x7f.1:80",
  "0x7f000001:80",
  "2130706433:80",
  "256.0.0.1:80",
  "2001:db8::7:443",
  "[2001:db8::7]",
  "[2001::db8::7]:443",
  "[10.0.0.1]:443",
  "http://a.example:80",
  "a.example:80/x",
  "user@a.example:80",
  "a..example:80",
  "-a.example:80",
  "a.example.:80",
  "a b:80",
  "a.example:80\n",
  `${"a".repeat(64)}.example:80`,
])("%j is no target", (text) => {
  expect(parseTarget(text)).toBeUndefined();
});
