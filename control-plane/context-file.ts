/** The file by which the command line finds a server: `{ server, token, caFile }`. */
import { mkdir, rename, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { newSecret } from "../shared/system.ts";

export async function writeContext(
  file: string,
  server: string,
  token: string,
  caPem: string | undefined,
): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  const caFile = join(dirname(file), "ca.pem");
  if (caPem !== undefined) await writeFile(caFile, caPem, { mode: 0o644 });
  // Nobody can be reached at "all addresses"; who reads the file is on this host. The CA lies beside the file.
  const address = server.replace(/\/\/(0\.0\.0\.0|\[::\])(?=:|$)/, "//127.0.0.1");
  const context = { server: address, token, ...(caPem === undefined ? {} : { caFile: basename(caFile) }) };
  const temporary = `${file}.${newSecret(6)}`;
  await writeFile(temporary, `${JSON.stringify(context, null, 2)}\n`, { mode: 0o600 });
  await rename(temporary, file);
}
