import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../../shared/system.ts";
import { DataDirectory } from "./data-directory.ts";

let path: string;
const children: ChildProcess[] = [];
const heard: string[][] = [];
const options = { clock: systemClock, onLeftOver: (names: string[]) => void heard.push(names) };

beforeEach(() => {
  path = join(mkdtempSync(join(tmpdir(), "insitu-data-")), ".insitu");
  heard.length = 0;
});

afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  rmSync(join(path, ".."), { recursive: true, force: true });
});

function idle(): ChildProcess {
  const child = spawn("sleep", ["600"], { stdio: "ignore" });
  children.push(child);
  return child;
}

/** The lock of a start whose process is gone. */
function leaveLock(entries: { name: string; pid: number; born: string }[]): void {
  const owner = { name: "insitu dev", pid: 2 ** 22 + 1, born: "1" };
  writeFileSync(join(path, "dev.json"), JSON.stringify({ owner, children: entries }));
}

describe("a folder for one start at a time", () => {
  test("is taken by the first, refused to the second, free again after it", async () => {
    const first = await DataDirectory.take(path, options);
    await expect(DataDirectory.take(path, options)).rejects.toMatchObject({
      code: "conflict",
      message: expect.stringContaining(`process ${process.pid}`),
    });
    first.release();
    const second = await DataDirectory.take(path, options);
    second.release();
    expect(existsSync(join(path, "dev.json"))).toBe(false);
  });

  test("is taken over from a start that was killed, and what it left running is stopped", async () => {
    (await DataDirectory.take(path, options)).release();
    const child = idle();
    const directory = await DataDirectory.take(path, options);
    directory.record("server", child.pid!);
    const lock = JSON.parse(readFileSync(join(path, "dev.json"), "utf8")) as { children: never[] };
    leaveLock(lock.children);
    const exit = once(child, "exit");
    const next = await DataDirectory.take(path, options);
    expect(await exit).toEqual([null, "SIGTERM"]);
    expect(heard).toEqual([["server"]]);
    next.release();
  });

  test("leaves a process alone that has a number of ours and another birth", async () => {
    (await DataDirectory.take(path, options)).release();
    const child = idle();
    leaveLock([{ name: "server", pid: child.pid!, born: "12" }]);
    (await DataDirectory.take(path, options)).release();
    expect(child.exitCode).toBeNull();
    expect(child.signalCode).toBeNull();
    expect(heard).toEqual([]);
  });

  test("is taken over when the lock was cut off while it was written", async () => {
    (await DataDirectory.take(path, options)).release();
    writeFileSync(join(path, "dev.json"), '{"owner": {"na');
    (await DataDirectory.take(path, options)).release();
    expect(existsSync(join(path, "dev.json"))).toBe(false);
  });

  test("that holds somebody's files is refused, and nothing in it is touched", async () => {
    rmSync(path, { recursive: true, force: true });
    const other = join(path, "..");
    writeFileSync(join(other, "thesis.txt"), "mine");
    await expect(DataDirectory.take(other, options)).rejects.toMatchObject({
      code: "request.invalid",
      message: expect.stringContaining("thesis.txt"),
    });
    expect(readFileSync(join(other, "thesis.txt"), "utf8")).toBe("mine");
  });

  test("begins anew without what earlier starts kept", async () => {
    const directory = await DataDirectory.take(path, options);
    writeFileSync(join(path, "context.json"), "{}");
    directory.empty();
    expect(existsSync(join(path, "context.json"))).toBe(false);
    directory.release();
  });
});
