/** Bad documents and the exact words that people get for them. */
import { describe, expect, test } from "vitest";
import { formatDocumentErrors } from "./document-errors.ts";
import { FILES_MAX_BYTES, loadDocuments, STEPS_MAX } from "./load-documents.ts";
import { DEPTH_MAX, DOCUMENT_MAX_BYTES, DOCUMENTS_PER_FILE_MAX } from "./parse-yaml.ts";

const ATTACHMENTS: Record<string, string> = { "dir/ok.mjs": "ok", "dir/image.png": "\u0000PNG" };

function load(text: string) {
  return loadDocuments({
    files: [{ file: "dir/p.yaml", text }],
    readAttachment: (path) => ATTACHMENTS[path],
  });
}

/** `line:column message (hint)` of each error. */
function errorsOf(text: string): string[] {
  const { errors } = load(text);
  return errors.map((e) => `${e.line}:${e.column} ${e.message}${e.hint ? ` (${e.hint})` : ""}`);
}

const step = (rest: string) => `kind: pipeline\nname: p\nsteps:\n  - id: a\n    run: [x]\n    ${rest}`;
const NAME =
  "a name of lower-case letters, digits and '-', at most 63, that starts and ends with a letter or digit";
const PATH = "a relative path below the document's directory, with '/' and without '..'";

describe("each fault has its own words", () => {
  test.each<[string, string[]]>([
    ["", ["1:1 the file holds no document"]],
    ["- a", ["1:1 a document must be a mapping with kind and name; this is a list"]],
    [
      "name: p",
      ["1:1 kind is missing; it must be one of pipeline, dataset, environment, pool, access-policy"],
    ],
    [
      "kind: pipline",
      [
        "1:7 kind is 'pipline'; it must be one of pipeline, dataset, environment, pool, access-policy (did you mean 'pipeline'?)",
      ],
    ],
    [
      "kind: pool\nname: My_Pool\ncapacity: two",
      [
        `2:7 name is 'My_Pool'; it must be ${NAME} (did you mean 'my-pool'?)`,
        "3:11 capacity is 'two'; it must be a whole number from 0 to 1000000",
      ],
    ],
    ["kind: pool\nname: p\nname: q\ncapacity: 1", ["3:1 name is written twice; it was first on line 2"]],
    ["kind: pool\n\tname: p", ["2:1 YAML is indented with spaces; here is a tab"]],
    ['kind: pool\nname: "p', ["2:9 a quote is opened and never closed"]],
    [
      "kind: pool\nname: p\ncapacity: 1\ndescription: a: b",
      [
        "4:14 a value cannot start here; is a text with ': ' in it not in quotes, or the line above not finished?",
      ],
    ],
    ["kind: pool\nname: p\ncapacity: 1\n__proto__: { a: 1 }", ["4:1 unknown key '__proto__'"]],
    ["kind: pool\nname: p\ncapacity: *x", ["3:11 the alias *x stands for nothing: no &x ends before it"]],
    [
      'kind: pool\nname: p\ncapacity: 1\ndescription: "\\ud800"',
      ["4:14 description is '\ud800'; it must be text without NUL and half characters"],
    ],
    [
      step("timeout: 30"),
      [
        "6:14 steps[0].timeout is 30; it must be a duration such as 500ms, 30s, 5m, 2h or 1d (add a unit: 30s)",
      ],
    ],
    [step("timeout: 0s"), ["6:14 steps[0].timeout is '0s'; it must be a duration above zero"]],
    [step("timeout: 400d"), ["6:14 steps[0].timeout is '400d'; it must be a duration of at most 365d"]],
    [
      step("retries: { max: 3, bakoff: 1s }"),
      ["6:24 unknown key 'bakoff' in steps[0].retries (did you mean 'backoff'?)"],
    ],
    [
      step("retries: { max: 1, backoff: 2m }"),
      ["6:14 step a has a backoff that is longer than its maxBackoff (raise maxBackoff (default 1m))"],
    ],
    [
      step("env: { LEVEL: 20 }"),
      [
        '6:19 steps[0].env.LEVEL is 20; it must be text, in quotes when it looks like a number (write it in quotes: "20")',
      ],
    ],
    [step("needs:"), ["6:11 steps[0].needs is empty; it must be a name or a list of names"]],
    [
      step("environment: []"),
      ["6:18 steps[0].environment is an empty list; it must be a list of one name or more"],
    ],
    [step("uses: noop"), ["6:11 step a has both 'run' and 'uses'; only one can be"]],
    [step("depends_on: [b]"), ["6:5 unknown key 'depends_on' in steps[0] (did you mean 'needs'?)"]],
    [
      step("files: [../x, /etc/passwd, a\\b]"),
      [
        `6:13 steps[0].files[0] is '../x'; it must be ${PATH}`,
        `6:19 steps[0].files[1] is '/etc/passwd'; it must be ${PATH}`,
        `6:32 steps[0].files[2] is 'a\\b'; it must be ${PATH}`,
      ],
    ],
    [
      step("files: [ok.mjs, gone.mjs, image.png]"),
      [
        "6:21 step a brings the file gone.mjs, which does not exist (looked for dir/gone.mjs)",
        "6:31 step a brings the file image.png, which is not UTF-8 text",
      ],
    ],
    [
      step("outputs: { a: { type: jsn, maxBytes: 64kb } }"),
      [
        "6:27 steps[0].outputs.a.type is 'jsn'; it must be json or text (did you mean 'json'?)",
        "6:42 steps[0].outputs.a.maxBytes is '64kb'; it must be a size such as 64KiB, 1MiB or 10MB, or a whole number of bytes",
      ],
    ],
    [
      step("artifacts: { a: { path: ../up } }"),
      [`6:29 steps[0].artifacts.a.path is '../up'; it must be ${PATH}`],
    ],
    [
      "kind: pipeline\nname: p\nsteps:\n  - id: a",
      [
        "4:5 step a has nothing to do (give it 'run' or 'container', or 'uses: noop' when it only joins others)",
      ],
    ],
    [
      "kind: pipeline\nname: p\nsteps: []",
      ["3:8 steps is an empty list; it must be a list of one step or more"],
    ],
    [
      "kind: pipeline\nname: p\nparams: { n: { type: number, default: x } }\nsteps: [{ id: a, uses: noop }]",
      ['3:39 the default of parameter n is "x"; its type is number'],
    ],
    [
      "kind: environment\nname: e\njurisdiction: UK",
      [
        "3:15 jurisdiction is 'UK'; it must be an ISO 3166-1 alpha-2 country code in capitals, such as DE (did you mean 'GB'?)",
      ],
    ],
    [
      "kind: environment\nname: e\njurisdiction: EU",
      [
        "3:15 jurisdiction is 'EU'; it must be an ISO 3166-1 alpha-2 country code in capitals, such as DE (EU is a group of countries; an environment lies in one country)",
      ],
    ],
    [
      "kind: dataset\nname: d\nowner: o\nclassification: secrt\nresidency: [EU, Uk]\nenvironments: e",
      [
        "4:17 classification is 'secrt'; it must be one of public, internal, confidential, restricted, secret (did you mean 'secret'?)",
        "5:17 residency[1] is 'Uk'; it must be an ISO 3166-1 alpha-2 country code in capitals, EU or EEA (did you mean 'GB'?)",
      ],
    ],
  ])("%j", (text, errors) => {
    expect(errorsOf(text)).toEqual(errors);
  });
});

describe("limits", () => {
  const tooDeep = `the document is nested deeper than ${DEPTH_MAX} levels`;
  test.each([
    ["brackets", "[".repeat(1_000_000)],
    ["braces", "{a: ".repeat(500_000)],
    ["dashes", "- ".repeat(1_000_000)],
    ["indents", Array.from({ length: 500 }, (_, depth) => `${" ".repeat(depth)}a:\n`).join("")],
  ])("a document of %s without end is too deep", (_what, text) => {
    expect(load(text).errors.map(({ message }) => message)).toEqual([tooDeep]);
  });

  test("a billion laughs are refused before they are laughed", () => {
    const laughs = Array.from(
      { length: 10 },
      (_, i) => `l${i + 1}: &l${i + 1} [${Array(9).fill(`*l${i}`).join(", ")}]`,
    );
    expect(errorsOf(`kind: pool\nl0: &l0 [ha]\n${laughs.join("\n")}`)).toEqual([
      "8:9 the aliases of the document stand for more than 1000000 values",
    ]);
  });

  test("an anchor that contains itself is refused", () => {
    expect(errorsOf("kind: pool\nname: &a [*a]")).toEqual([
      "2:11 the alias *a stands for nothing: no &a ends before it",
    ]);
  });

  test("a thousand aliases are allowed and no more", () => {
    const text = (count: number) =>
      `kind: environment\nname: e\njurisdiction: DE\nlabels:\n  first: &x x\n${Array.from({ length: count }, (_, i) => `  l${i}: *x\n`).join("")}`;
    expect(errorsOf(text(1_000))).toEqual([]);
    expect(errorsOf(text(1_001))).toEqual(["1006:10 the document has more than 1000 aliases"]);
  });

  test.each<[string, string, string]>([
    ["bytes", `#${"x".repeat(DOCUMENT_MAX_BYTES)}`, "1:1 the file has 4 MiB; 4 MiB are allowed"],
    [
      "documents",
      "kind: pool\nname: p\ncapacity: 1\n---\n".repeat(DOCUMENTS_PER_FILE_MAX + 1),
      "4000:1 the file holds more than 1000 documents",
    ],
    [
      "steps",
      `kind: pipeline\nname: p\nsteps:\n${"- {}\n".repeat(STEPS_MAX + 1)}`,
      "3:1 the pipeline has 20001 steps; 20000 are allowed",
    ],
    [
      "files",
      `kind: pipeline\nname: p\nfiles: { a: ${"x".repeat(FILES_MAX_BYTES + 1024)} }\nsteps: [{ id: a, uses: noop }]`,
      "3:1 the files of the pipeline have 513 KiB together; 512 KiB are allowed",
    ],
  ])("too many %s are refused", (_what, text, error) => {
    expect(errorsOf(text)).toEqual([error]);
  });

  test("of many errors a hundred are told, and how many there are besides", () => {
    const errors = errorsOf(
      `kind: pool\nname: p\ncapacity: 1\n${Array.from({ length: 150 }, (_, i) => `k${i}: 1\n`).join("")}`,
    );
    expect(errors).toHaveLength(101);
    expect(errors[99]).toBe("103:1 unknown key 'k99'");
    expect(errors[100]).toBe("103:1 50 more errors in this document are not shown");
  });
});

test("errors are shown with their line and a mark, in order of place", () => {
  const text = "kind: pool\nname: p\ncapacty: 1\n";
  const shown = formatDocumentErrors(load(text).errors.reverse(), {
    color: false,
    sources: new Map([["dir/p.yaml", text]]),
  });
  expect(shown).toBe(`dir/p.yaml:1:1: error: capacity is missing; it must be a whole number from 0 to 1000000
  1 | kind: pool
    | ^

dir/p.yaml:3:1: error: unknown key 'capacty'
  3 | capacty: 1
    | ^^^^^^^
    = did you mean 'capacity'?

2 errors in 1 file
`);
});

test("a document cannot move the cursor of the terminal that shows its errors", () => {
  const text = 'kind: "pool\\e[2J"';
  const shown = formatDocumentErrors(load(text).errors, { color: false });
  expect(shown).toContain("kind is 'pool\uFFFD[2J'");
});
