/** Files in the directory of the identity. */
import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";

type Write = (file: string, content: Buffer | string) => void;

/** Writes into the directory of the identity, whole files, readable by the agent's user alone. */
export function writerInto(directory: string): Write {
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  return (file, content) => {
    writeFileSync(join(directory, `.${file}`), content, { mode: 0o600, flush: true } as Parameters<
      typeof writeFileSync
    >[2]);
    renameSync(join(directory, `.${file}`), join(directory, file));
  };
}
