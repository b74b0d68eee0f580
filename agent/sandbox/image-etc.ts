/** The few files of /etc that each box of an image is given, whatever the image has there. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { IMAGE_ETC } from "./box-plan.ts";

/** @param user whom the step runs as; `directory` may be there already */
export async function writeImageEtc(
  directory: string,
  { uid, gid }: { uid: number; gid: number },
): Promise<void> {
  const root = uid === 0 ? [] : ["root:x:0:0:root:/root:/sbin/nologin"];
  const rootGroup = gid === 0 ? [] : ["root:x:0:"];
  const files: Record<(typeof IMAGE_ETC)[number], string[]> = {
    passwd: [...root, `step:x:${uid}:${gid}:step:/tmp:/bin/sh`],
    group: [...rootGroup, `step:x:${gid}:`],
    "nsswitch.conf": ["passwd: files", "group: files", "hosts: files"],
    hosts: ["127.0.0.1 localhost", "::1 localhost"],
  };
  await mkdir(directory, { recursive: true, mode: 0o755 });
  for (const [name, lines] of Object.entries(files))
    await writeFile(join(directory, name), `${lines.join("\n")}\n`, { mode: 0o644 });
}
