import fc from "fast-check";
import { expect, test } from "vitest";
import type { LogLine } from "../api/schemas.ts";
import { harmlessLine, LogLines, type LogStyle } from "./log-lines.ts";
import { painter } from "./text.ts";

const style: LogStyle = { prefix: false, timestamps: false, harmless: false, paint: painter(false) };

function entry(data: string | Uint8Array, change: Partial<LogLine> = {}): LogLine {
  const base64 = Buffer.from(data as string).toString("base64");
  return {
    step: "one",
    attempt: 1,
    epoch: 1,
    seq: 1,
    atMs: 1_700_000_000_000,
    stream: "stdout",
    data: base64,
    droppedBytes: 0,
    ...change,
  };
}

test("characters that are split between two entries stay whole, wherever the split is", () => {
  const text = "R² über 342 Pinguine 🐧 → fertig\n";
  const bytes = Buffer.from(text);
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: bytes.length }), { maxLength: 6 }), (cuts) => {
      const lines = new LogLines(style);
      const at = [0, ...cuts.sort((a, b) => a - b), bytes.length];
      const out = at.slice(1).map((end, index) => lines.push(entry(bytes.subarray(at[index], end))));
      expect(out.join("") + lines.flush()).toBe(text);
    }),
  );
});

test("lines of steps that write at the same time are not mixed", () => {
  const lines = new LogLines({ ...style, prefix: true });
  let out = lines.push(entry("first ha"));
  out += lines.push(entry("other\n", { step: "two", stream: "stderr", attempt: 2 }));
  out += lines.push(entry("lf\nrest"));
  out += lines.flush();
  expect(out).toBe("two#2 stderr | other\none | first half\none | rest\n");
});

test("the time of a line is that of its first piece", () => {
  const lines = new LogLines({ ...style, timestamps: true });
  lines.push(entry("a", { atMs: 0 }));
  expect(lines.push(entry("b\nc\n", { atMs: 60_000 }))).toBe(
    "1970-01-01T00:00:00.000Z ab\n1970-01-01T00:01:00.000Z c\n",
  );
});

test("a line without end comes out in pieces", () => {
  const lines = new LogLines(style);
  const out = lines.push(entry("x".repeat(200_000))) + lines.flush();
  expect(out.replaceAll("\n", "")).toHaveLength(200_000);
  expect(out.split("\n").every((line) => line.length <= 64 * 1024)).toBe(true);
});

test("colours reach the terminal; what would move, erase, rename or ask does not", () => {
  expect(harmlessLine("\u001b[31mred\u001b[0m")).toBe("\u001b[31mred\u001b[0m\u001b[0m");
  expect(harmlessLine("a\u001b[2Jb")).toBe("a^[[2Jb");
  expect(harmlessLine("\u001b]0;title\u0007")).toBe("^[]0;title^G");
  expect(harmlessLine("progress 1%\rprogress 2%")).toBe("progress 1%^Mprogress 2%");
  expect(harmlessLine("\u009b2J\u202eevil")).toBe("\\u009b2J\\u202eevil");
});

test("whatever a step writes, nothing but colours drives the terminal", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      const lines = new LogLines({ ...style, harmless: true });
      const out = lines.push(entry(bytes)) + lines.flush();
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not be there
      expect(out.replace(/\u001b\[[0-9;:]*m/g, "")).not.toMatch(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/);
    }),
  );
});

test("what was refused is named in its place, and shows no control characters of whoever made it", () => {
  const lines = new LogLines({ ...style, harmless: true });
  const refused = "entries 3 to 4 of attempt 1 of step a\u001b[2J: it is not what site/a signed";
  const out = lines.push(entry("one\n")) + lines.push(entry("", { stream: "agent", refused }));
  expect(out).toMatch(/^one\n.*-- not shown here: entries 3 to 4 of attempt 1/);
  expect(out).not.toContain("\u001b");
});
