/** What `get`, `describe` and `delete` take for a kind: any usual way to write it. */
import { InsituError } from "../../shared/errors.ts";
import { unknownName } from "../../shared/model/nearest.ts";
import type { Kind } from "../../shared/model/spec.ts";

export type ShownKind = Kind | "run" | "agent";

const SPELLINGS: Record<ShownKind, readonly string[]> = {
  pipeline: ["pipeline", "pipelines", "pl"],
  dataset: ["dataset", "datasets", "ds"],
  environment: ["environment", "environments", "env", "envs"],
  pool: ["pool", "pools"],
  "access-policy": ["access-policy", "access-policies", "accesspolicy", "accesspolicies"],
  run: ["run", "runs"],
  agent: ["agent", "agents"],
};

const SHOWN_KINDS = Object.keys(SPELLINGS) as ShownKind[];
/** Runs and agents come and go by themselves: they are seen, and not deleted. */
const DELETED_KINDS = SHOWN_KINDS.filter((kind) => kind !== "run" && kind !== "agent") as Kind[];

/** Accepts `KIND/NAME` in one word too, as `apply` prints it. */
export function parseKind(
  args: readonly string[],
  offered: readonly ShownKind[] = SHOWN_KINDS,
): { kind: ShownKind; name: string | undefined } {
  const [first = "", second] = args;
  const cut = first.indexOf("/");
  const word = (cut < 0 ? first : first.slice(0, cut)).toLowerCase();
  const kind = SHOWN_KINDS.find((one) => SPELLINGS[one].includes(word));
  if (kind === undefined) {
    throw new InsituError("request.invalid", unknownName({ kind: "kind", name: word, known: offered }));
  }
  return { kind, name: cut < 0 ? second : first.slice(cut + 1) };
}

export function parseResource(args: readonly string[]): { kind: Kind; name: string } {
  const { kind, name } = parseKind(args, DELETED_KINDS);
  if (kind === "run" || kind === "agent") {
    throw new InsituError(
      "request.invalid",
      `${kind}s cannot be deleted${kind === "run" ? "; `insitu runs cancel` stops one" : ""}`,
    );
  }
  if (!name) throw new InsituError("request.invalid", `which ${kind}? Name it: insitu delete ${kind} NAME`);
  return { kind, name };
}
