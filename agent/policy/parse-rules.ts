/** From the text of a policy file to its rules, or every fault with its place. Loaded by agents that have such a file. */
import { InsituError } from "../../shared/errors.ts";
import {
  type DocumentError,
  type DocumentPath,
  inOrder,
  pathText,
} from "../../shared/model/document-errors.ts";
import { explainIssue } from "../../shared/model/explain-issue.ts";
import { parseYaml } from "../../shared/model/parse-yaml.ts";
import { SiteRules } from "./rules.ts";

const KEYS: Readonly<Record<string, readonly string[]>> = {
  "": Object.keys(SiteRules.shape),
  signedPipelines: ["keys", "maxAge"],
  files: ["path", "sha256"],
  datasets: ["name", "access", "owner", "classification"],
  hours: ["days", "from", "to", "zone"],
  maximum: ["timeout", "outputBytes", "artifactBytes", "memory", "cpu", "processes", "openFiles", "fileSize"],
};

/** @throws request.invalid with file, line, column and field of each fault */
export function parseRules(file: string, text: string): SiteRules {
  const { documents, errors } = parseYaml(file, text);
  const [document, second] = documents;
  if (errors.length === 0 && second !== undefined)
    errors.push({
      file,
      ...second.locate([]),
      path: "",
      message: "a site has one policy, and here is a second",
    });
  if (errors.length > 0 || document === undefined) throw invalid(errors);
  const parsed = SiteRules.safeParse(document.value);
  if (parsed.success) return parsed.data;
  const faults = parsed.error.issues.flatMap((issue) => explainIssue(issue, document.value, keysAt));
  throw invalid(
    faults.map(({ path, on, ...rest }) => ({
      file,
      ...document.locate(path, on),
      path: pathText(path),
      ...rest,
    })),
  );
}

function keysAt(path: DocumentPath): readonly string[] {
  return KEYS[path.length === 0 ? "" : String(path[0])] ?? [];
}

function invalid(errors: readonly DocumentError[]): InsituError {
  const lines = inOrder(errors).map(({ file, line, column, path, message, hint }) => {
    const field = path === "" || message.includes(path) ? "" : `${path}: `;
    return `${file}:${line}:${column}: ${field}${message}${hint === undefined ? "" : ` (${hint})`}`;
  });
  return new InsituError("request.invalid", `the site policy is not valid: ${lines.join("; ")}`);
}
