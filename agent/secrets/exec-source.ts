/** A secret that a program prints. What it says on stderr is not kept: nobody knows what is in it. */
import { spawn } from "node:child_process";
import type { Clock } from "../../shared/system.ts";
import type { ExecSource } from "./secret-config.ts";
import { SECRET_MAX_BYTES, SecretError } from "./secret-error.ts";

/** Seen by every such program. */
const PASSED = ["PATH", "HOME", "LANG"];

export interface ExecWorld {
  clock: Clock;
  environment: Readonly<Record<string, string | undefined>>;
  signal: AbortSignal;
}

/** @throws SecretError */
export function readFromProgram({ argv, timeoutMs, passEnv }: ExecSource, world: ExecWorld): Promise<Buffer> {
  const { clock, environment, signal } = world;
  const [command = "", ...args] = argv;
  const env = Object.fromEntries(
    [...PASSED, ...passEnv].flatMap((name) =>
      environment[name] === undefined ? [] : [[name, environment[name]]],
    ),
  );
  return new Promise((resolve, reject) => {
    // A group of its own, so that what it has started ends with it.
    const child = spawn(command, args, {
      cwd: "/",
      env,
      stdio: ["ignore", "pipe", "ignore"],
      detached: true,
    });
    const parts: Buffer[] = [];
    let bytes = 0;
    const settle = (act: () => void): void => {
      timer.cancel();
      signal.removeEventListener("abort", aborted);
      child.stdout.destroy();
      if (child.pid !== undefined) endGroup(child.pid);
      act();
    };
    const fail = (kind: SecretError["kind"], why: string): void =>
      settle(() => reject(new SecretError(kind, `its program ${command} ${why}`)));
    const aborted = (): void => fail("unavailable", "was stopped with the step");
    const timer = clock.after(timeoutMs, () => fail("unavailable", `did not end within ${timeoutMs} ms`));
    signal.addEventListener("abort", aborted, { once: true });
    child.stdout.on("data", (data: Buffer) => {
      parts.push(data);
      bytes += data.length;
      if (bytes > SECRET_MAX_BYTES)
        fail("missing", `printed more than the ${SECRET_MAX_BYTES} bytes that are allowed`);
    });
    child.stdout.on("error", () => undefined); // "close" follows
    child.once("error", (thrown: NodeJS.ErrnoException) =>
      fail("missing", `cannot be started (${thrown.code})`),
    );
    child.once("close", (code, ended) => {
      if (code === 0) return settle(() => resolve(Buffer.concat(parts)));
      fail("unavailable", `ended with ${ended ?? `exit code ${code}`}; run it by hand to see what it says`);
    });
    if (signal.aborted) aborted();
  });
}

function endGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // Nobody of it is left, which is what is wanted.
  }
}
