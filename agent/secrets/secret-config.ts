/** The parts of the agent's configuration that say where secrets come from. Holds no value of any. */
import { z } from "zod";
import { Name } from "../../shared/model/names.ts";

const Timeout = z.coerce.number().int().min(100).max(120_000).default(10_000);
const Variable = z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, "a name of letters, digits and '_'");
/** Segments of a path in a vault; none that an HTTP client would take out again. */
const VaultPath = z
  .string()
  .regex(/^[^/?#%\s]+(\/[^/?#%\s]+)*$/, "segments with '/' between them, and none at the ends")
  .refine(
    (path) => !path.split("/").some((part) => part === "." || part === ".."),
    "a path without . and ..",
  );

/** Of all sources. */
const shared = {
  /** Given to steps of these alone. Missing: to every step that runs at this agent. */
  pipelines: z.array(Name).min(1).optional(),
};

export const SecretSource = z.discriminatedUnion("from", [
  /** Readable by the agent's user alone. Relative to the configuration file. */
  z.strictObject({ ...shared, from: z.literal("file"), path: z.string().min(1) }),
  /** Of the agent's own process. */
  z.strictObject({ ...shared, from: z.literal("env"), variable: Variable }),
  z.strictObject({
    ...shared,
    from: z.literal("exec"),
    /** A program and its arguments, without a shell. What it prints on stdout is the secret. */
    argv: z.array(z.string().min(1)).min(1),
    timeoutMs: Timeout,
    /** Variables of the agent's own environment that it sees, besides PATH, HOME and LANG. */
    passEnv: z.array(Variable).default([]),
  }),
  z.strictObject({
    ...shared,
    from: z.literal("vault"),
    mount: VaultPath.default("secret"),
    path: VaultPath,
    field: z.string().min(1),
  }),
]);
export type SecretSource = z.infer<typeof SecretSource>;
export type ExecSource = Extract<SecretSource, { from: "exec" }>;
export type VaultSource = Extract<SecretSource, { from: "vault" }>;

/** HashiCorp Vault, OpenBao, or what speaks as they do: the engine kv, version 2. */
export const VaultConfig = z.strictObject({
  address: z
    .url({ protocol: /^https?$/ })
    .refine(
      (address) => URL.canParse(address) && (new URL(address).protocol === "https:" || isLoopback(address)),
      "https; http is for a vault on this host alone (127.0.0.1, [::1], localhost)",
    ),
  /** Read anew each time, so that whoever renews it only has to write it. */
  tokenFile: z.string().min(1),
  namespace: z.string().min(1).optional(),
  /** PEM. Default: those that Node trusts. */
  caFile: z.string().min(1).optional(),
  timeoutMs: Timeout,
});
export type VaultConfig = z.infer<typeof VaultConfig>;

export const SecretsConfig = z.record(Name, SecretSource);
export type SecretsConfig = z.infer<typeof SecretsConfig>;

function isLoopback(address: string): boolean {
  return /^(127\.\d+\.\d+\.\d+|\[::1\]|localhost)$/.test(new URL(address).hostname);
}
