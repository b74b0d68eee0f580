/** Checks the parameters of a run against what its pipeline declares, and fills in defaults. */
import { InsituError } from "../../shared/errors.ts";
import { unknownName } from "../../shared/model/nearest.ts";
import type { ParamSpec, ParamValue, PipelineSpec } from "../../shared/model/spec.ts";

/** @throws request.invalid with every fault at once in `details.errors` */
export function resolveParams(
  spec: PipelineSpec,
  given: Readonly<Record<string, ParamValue>>,
): Record<string, ParamValue> {
  const faults: { pointer: string; detail: string }[] = [];
  const resolved: Record<string, ParamValue> = {};
  for (const name of Object.keys(given)) {
    if (Object.hasOwn(spec.params, name)) continue;
    const known = Object.keys(spec.params);
    const detail = unknownName({ kind: "parameter", name, within: `pipeline ${spec.name}`, known });
    faults.push({ pointer: pointerTo(name), detail });
  }
  for (const [name, param] of Object.entries(spec.params)) {
    const value = Object.hasOwn(given, name) ? coerce(param, given[name]!) : param.default;
    const fault = value === undefined ? "is required" : faultOf(param, value);
    if (fault !== undefined) faults.push({ pointer: pointerTo(name), detail: `parameter ${name} ${fault}` });
    else resolved[name] = value!;
  }
  if (faults.length > 0) {
    const message =
      faults.length === 1
        ? faults[0]!.detail
        : `${faults.length} parameters of pipeline ${spec.name} are not valid`;
    throw new InsituError("request.invalid", message, { details: { errors: faults } });
  }
  return resolved;
}

/** A name that nobody declared can hold anything: escaped as RFC 6901 wants it. */
function pointerTo(name: string): string {
  return `/params/${name.replaceAll("~", "~0").replaceAll("/", "~1")}`;
}

/** A command line has only text: `-p n=3` is a number when the pipeline says so. */
function coerce(param: ParamSpec, value: ParamValue): ParamValue {
  if (typeof value !== "string") return value;
  if (param.type === "number" && value.trim() !== "" && Number.isFinite(Number(value))) return Number(value);
  if (param.type === "boolean" && (value === "true" || value === "false")) return value === "true";
  return value;
}

function faultOf(param: ParamSpec, value: ParamValue): string | undefined {
  if (typeof value !== param.type) return `must be a ${param.type}, not ${JSON.stringify(value)}`;
  if (param.enum && !param.enum.includes(value as string | number)) {
    return `must be one of ${param.enum.join(", ")}, not ${JSON.stringify(value)}`;
  }
  return undefined;
}
