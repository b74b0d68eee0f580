/** From the secrets of a step to what its processes and its supervisor are told. */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Offer } from "../../shared/wire/attempt.ts";
import { SecretError } from "../secrets/secret-error.ts";
import type { ResolvedSecrets, Secrets } from "../secrets/secrets.ts";
import type { StepSpec } from "../supervisor/protocol.ts";
import type { Workspace } from "./workspace.ts";

/**
 * @param boxed its files lie in the box; without one, they need a directory in memory
 * @throws SecretError
 */
export async function resolveSecrets(
  { step, pipeline }: Offer,
  { secrets, boxed, signal }: { secrets: Secrets | undefined; boxed: boolean; signal: AbortSignal },
): Promise<ResolvedSecrets | undefined> {
  if (step.secrets === undefined) return undefined;
  if (!secrets) throw new SecretError("missing", "this agent knows no secrets");
  const hasFiles = Object.values(step.secrets).some(({ as }) => as === "file");
  if (hasFiles && !boxed && secrets.memoryDirectory === undefined) {
    const why = "neither /dev/shm nor $XDG_RUNTIME_DIR of this host lies in memory";
    const advice =
      "mount a tmpfs there, let the agent run steps in a sandbox, or ask for the secrets with `as: env`";
    throw new SecretError("missing", `secrets cannot be given as files: ${why}; ${advice}`);
  }
  return await secrets.resolve({ wanted: step.secrets, pipeline }, signal);
}

/** Without a box. The marker is the step's own, and cannot be guessed from outside. */
export function secretFilesOf(secrets: Secrets | undefined, marker: string): string | undefined {
  const directory = secrets?.memoryDirectory;
  return directory === undefined ? undefined : join(directory, `insitu-${marker}`);
}

export function secretEnvironment(resolved: ResolvedSecrets, directory: string): Record<string, string> {
  const paths = Object.keys(resolved.files).map((name) => [`${name}_FILE`, join(directory, name)]);
  return { ...resolved.env, ...Object.fromEntries(paths) };
}

/** For the supervisor. `directory`: where it puts the files of a step without a box. */
export function concealed(
  { step }: Offer,
  { outputs }: Workspace,
  { values, files }: ResolvedSecrets,
  directory: string | undefined,
): NonNullable<StepSpec["secrets"]> {
  const contents = mapValues(files, (value) => value.toString("base64"));
  return {
    values: values.map((value) => value.toString("base64")),
    ...(directory === undefined || Object.keys(files).length === 0 ? {} : { files: { directory, contents } }),
    outputs: { directory: outputs, maxBytes: mapValues(step.outputs, ({ maxBytes }) => maxBytes) },
  };
}

/** Left by a supervisor that was killed. */
export async function removeSecretFiles(secrets: Secrets | undefined, marker: string): Promise<void> {
  const directory = secretFilesOf(secrets, marker);
  if (directory !== undefined) await rm(directory, { recursive: true, force: true });
}

function mapValues<A, B>(map: Readonly<Record<string, A>>, change: (value: A) => B): Record<string, B> {
  return Object.fromEntries(Object.entries(map).map(([key, value]) => [key, change(value)]));
}
