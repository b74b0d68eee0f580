/** Starts `connect-proxy.mjs`, and says what went through it. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export const PROXY_USER = "site-7";
export const PROXY_PASSWORD = "s3cret: päss";

export interface ConnectProxy extends AsyncDisposable {
  readonly url: string;
  /** `host:port` that tunnels were opened to, in order. */
  readonly opened: readonly string[];
  /** `host:port` that was asked for without the right password. */
  readonly refused: readonly string[];
}

export async function startConnectProxy(): Promise<ConnectProxy> {
  const program = fileURLToPath(new URL("connect-proxy.mjs", import.meta.url));
  const child: ChildProcess = spawn(process.execPath, [program, PROXY_USER, PROXY_PASSWORD], {
    stdio: ["ignore", "pipe", "inherit", "ipc"],
  });
  const opened: string[] = [];
  const refused: string[] = [];
  const port = await new Promise<number>((resolve, reject) => {
    child.once("error", reject);
    createInterface({ input: child.stdout! }).on("line", (line) => {
      const event = JSON.parse(line) as { port?: number; opened?: string; refused?: string };
      if (event.port !== undefined) resolve(event.port);
      if (event.opened !== undefined) opened.push(event.opened);
      if (event.refused !== undefined) refused.push(event.refused);
    });
  });
  return {
    url: `http://127.0.0.1:${port}`,
    opened,
    refused,
    async [Symbol.asyncDispose]() {
      const gone = once(child, "exit");
      child.kill("SIGKILL");
      await gone;
    },
  };
}
