/** `insitu-agent images …`: the container images that steps may run at a site. */
import { statSync } from "node:fs";
import { parseArgs } from "node:util";
import { InsituError } from "../../shared/errors.ts";
import { Digest } from "../../shared/model/names.ts";
import { type AgentConfig, loadConfig } from "../config.ts";
import { ImageStore } from "./image-store.ts";

const HELP = `insitu-agent images — the container images that steps may run at this site

Usage
  insitu-agent images import PATH [--digest DIGEST] [--config FILE | --state-dir DIR]
                                     checks each digest of an OCI image layout (a directory, or a tar of one) and unpacks it
  insitu-agent images list           what is there, with the digests that steps name
  insitu-agent images remove DIGEST  while no step runs from it

Flags
  --config FILE          the agent's configuration, for its stateDir
  --state-dir DIR        the agent's state directory, without a configuration
  --digest DIGEST        which image, when the layout holds several

Examples
  skopeo copy --preserve-digests docker://registry.example/stats@sha256:4f53… oci-archive:stats.tar    (where there is a registry)
  insitu-agent images import stats.tar --config /etc/insitu/agent.yaml                                 (at the site)
  insitu-agent images list --config /etc/insitu/agent.yaml

Run it as the agent's user; the agent itself need not be stopped. Needs umoci to unpack (Debian, Ubuntu: apt-get install umoci).
Exit codes: 0 done · 1 failed · 2 no such image, or not the one that its digest says
`;

export interface ImagesWorld {
  write(text: string): void;
  nowMs(): number;
  uid: number;
  env: NodeJS.ProcessEnv;
}

/** @throws request.invalid */
export async function imagesCommand(argv: string[], world: ImagesWorld): Promise<number> {
  const { values, positionals } = parse(argv);
  const [command, argument, ...rest] = positionals;
  if (values.help || command === undefined || command === "help") {
    world.write(HELP);
    return command === undefined && !values.help ? 2 : 0;
  }
  if (rest.length > 0) throw invalid(`"${rest[0]}" is one argument too many`);
  if (command === "list") return await list(await storeOf(values, world), world);
  if (command !== "import" && command !== "remove")
    throw invalid(`there is no command "images ${command}"; it is import, list or remove`);
  if (argument === undefined)
    throw invalid(`images ${command} needs ${command === "import" ? "the path of a layout" : "a digest"}`);
  const store = await storeOf(values, world);
  if (command === "remove") return await remove(store, argument, world);
  const wanted = values.digest === undefined ? undefined : digestFrom(values.digest);
  const { image, isNew } = await store.import(argument, { wanted, nowMs: world.nowMs() });
  world.write(`${image.digest} ${isNew ? "imported" : "was here already"}\n`);
  for (const index of image.indexes) world.write(`${index} leads to it as well\n`);
  world.write(`Steps name it so: container: { image: NAME@${image.digest} }\n`);
  return 0;
}

async function list(store: ImageStore, { write }: ImagesWorld): Promise<number> {
  const images = await store.list();
  if (images.length === 0) write("no images here; see insitu-agent images --help\n");
  for (const { digest, indexes, importedAtMs, entrypoint, cmd } of images) {
    const command = [...entrypoint, ...cmd].map((word) => JSON.stringify(word)).join(" ");
    write(`${digest}  ${new Date(importedAtMs).toISOString()}  ${command}\n`);
    for (const index of indexes) write(`  ${index}\n`);
  }
  return 0;
}

async function remove(store: ImageStore, text: string, { write }: ImagesWorld): Promise<number> {
  const digest = digestFrom(text);
  if (!(await store.remove(digest))) throw invalid(`there is no image ${digest} here`);
  write(`${digest} removed\n`);
  return 0;
}

async function storeOf(
  values: { config?: string | undefined; "state-dir"?: string | undefined },
  { uid, env }: ImagesWorld,
): Promise<ImageStore> {
  const { stateDir }: AgentConfig = await loadConfig(values, env);
  const owner = ownerOf(stateDir);
  if (owner === undefined)
    throw invalid(
      `there is no state directory ${stateDir}; say --config FILE or --state-dir DIR, or start the agent once`,
    );
  // The agent could not read what another user has unpacked.
  if (owner !== uid)
    throw invalid(`${stateDir} belongs to the user ${owner}; run this as that user (sudo -u '#${owner}' …)`);
  return new ImageStore(stateDir);
}

function ownerOf(directory: string): number | undefined {
  try {
    return statSync(directory).uid;
  } catch {
    return undefined; // not there
  }
}

function digestFrom(text: string): string {
  const digest = Digest.safeParse(text);
  if (!digest.success) throw invalid(`"${text}" is no digest: sha256: and 64 hexadecimal digits`);
  return digest.data;
}

function parse(argv: string[]) {
  try {
    return parseArgs({
      args: argv,
      allowPositionals: true,
      options: {
        config: { type: "string" },
        "state-dir": { type: "string" },
        digest: { type: "string" },
        help: { type: "boolean", short: "h" },
      },
    });
  } catch (err) {
    throw invalid(`${err instanceof Error ? err.message : err} (see insitu-agent images --help)`);
  }
}

function invalid(message: string): InsituError {
  return new InsituError("request.invalid", message);
}
