/** What a step's executor says is to be run: a program of the host, or one of an image that is at the site. */
import { digestOfImage } from "../../shared/model/image.ts";
import type { ContainerExecutor, ExecutorSpec } from "../../shared/model/spec.ts";
import type { ImageStore, StoredImage } from "../images/image-store.ts";
import { EXPORTABLE } from "../sandbox/box-plan.ts";
import type { Sandbox } from "../sandbox/sandbox.ts";

export interface Program {
  argv: readonly string[];
  /** What the image says. */
  env: Record<string, string>;
  /** Missing: the host's files. */
  rootfs?: string;
}

/** The step is not started. */
export interface NoProgram {
  code: "image.missing" | "image.no-command" | "sandbox";
  message: string;
}

/** Of an image that says nothing of it. */
const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/** Where the step's own directories are, the agent says. */
const NOT_THE_IMAGES = ["HOME", "TMPDIR"];

export async function programOf(
  executor: ExecutorSpec,
  { images, sandbox }: { images?: ImageStore; sandbox: Sandbox },
): Promise<Program | NoProgram> {
  if (executor.kind === "process") return { argv: executor.argv, env: {} };
  if (executor.kind !== "container" || !images)
    throw new Error(`executor ${executor.kind} runs no program here`);
  if (!sandbox.runsContainers) {
    const why = sandbox.noImages ?? `it has no sandbox (${sandbox.summary})`;
    return { code: "sandbox", message: `this agent cannot run container images: ${why}` };
  }
  const digest = digestOfImage(executor.image);
  const image = await images.find(digest);
  if (!image) {
    const advice = `import it there: skopeo copy --preserve-digests docker://${executor.image} oci-archive:FILE.tar, then insitu-agent images import FILE.tar`;
    return { code: "image.missing", message: `the image ${digest} is not at this agent (${advice})` };
  }
  const argv = commandOf(executor, image);
  if (argv.length > 0) return { argv, env: environmentOf(image), rootfs: image.rootfs };
  const message = `the image ${digest} does not say what to run; give the step container.command`;
  return { code: "image.no-command", message };
}

/** As with Kubernetes: a command of the step takes the place of all that the image says. */
export function commandOf(
  { command, args }: Pick<ContainerExecutor, "command" | "args">,
  { entrypoint, cmd }: Pick<StoredImage, "entrypoint" | "cmd">,
): string[] {
  if (command) return [...command, ...(args ?? [])];
  return [...entrypoint, ...(args ?? cmd)];
}

function environmentOf({ env }: StoredImage): Record<string, string> {
  const pairs = env.map((text): [string, string] => {
    const at = text.indexOf("=");
    return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
  });
  // A name that no shell can export is lost, as it would be in any shell script.
  const given = pairs.filter(([name]) => EXPORTABLE.test(name) && !NOT_THE_IMAGES.includes(name));
  return { PATH, ...Object.fromEntries(given) };
}
