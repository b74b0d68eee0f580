/** The sample bundle, verified by us, and by Go's sumdb, which knows nothing of us. */
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { datasetReport } from "../control-plane/evidence/bundle/dataset-report.ts";
import { BundleVerifier, type VerifiedBundle } from "../control-plane/evidence/bundle/verify-bundle.ts";
import { fromBase64, toBase64 } from "../shared/provenance/encoding.ts";
import { consistencyProof, inclusionProof, leafHash, readerOf } from "../shared/provenance/merkle.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const sample = (name: string): string =>
  readFileSync(join(ROOT, "test/fixtures", `sample-bundle.${name}`), "utf8");
const lines = sample("jsonl").trimEnd().split("\n");
const records = lines.map((line) => JSON.parse(line) as Record<string, string>);
const checkpoint = records[1]!.checkpoint!;
const leaves = records.flatMap(({ kind, leaf }) => (kind === "leaf" ? [fromBase64(leaf!)!] : []));
const tree = readerOf(leaves.map((leaf) => leafHash(leaf)));
const LIMIT_MS = 120_000;

function verifiedSample(given: readonly string[] = lines): VerifiedBundle {
  const verifier = new BundleVerifier({
    rootsPem: [sample("root.pem")],
    verifierKey: sample("key").trim(),
    kept: [sample("checkpoint.txt")],
  });
  for (const line of given) verifier.line(line);
  return verifier.finish();
}

test("the sample bundle, of two runs of the demonstration, verifies; its report is of the dataset's two steps", () => {
  const found = verifiedSample();
  expect(found.findings.counts).toEqual({ failed: 0, open: 0, unchecked: 1 });
  expect(found.ledger?.size).toBe(leaves.length);
  expect(found.attempts).toHaveLength(6);
  expect(datasetReport(found)).toMatchObject({
    dataset: "penguins-dream",
    coverage: { ended: 2, withReceipt: 2, percent: 100 },
    statement: {
      environments: [{ name: "dream", attempts: 2, receipts: 2 }],
      text: "In the leaves shown, no step that reads or writes penguins-dream ran outside dream.",
    },
  });
});

test("any one line that is left out of it is missed", () => {
  for (const at of lines.keys())
    expect(verifiedSample(lines.toSpliced(at, 1)).findings.counts.failed).toBeGreaterThan(0);
});

const said = spawnSync("go", ["env", "GOROOT", "GOVERSION"], { encoding: "utf8" }).stdout ?? "";
const [go = "", version = ""] = said.trim().split("\n");
/** Its own sources may use all that it knows. */
const language = /^go(\d+\.\d+)/.exec(version)?.[1] ?? "1.22";
// What the go command itself is built with: it is there without a network.
const sumdb = join(go, "src/cmd/vendor/golang.org/x/mod");
const hasGo = go !== "" && existsSync(join(sumdb, "sumdb/tlog"));
if (!hasGo)
  process.stderr.write("SKIPPED: no Go with its sources here, so Go's sumdb verifies nothing of ours.\n");

describe.skipIf(!hasGo)("Go's golang.org/x/mod/sumdb", () => {
  const input = () => {
    const kept = sample("checkpoint.txt");
    const from = Number(kept.split("\n")[1]);
    return {
      key: sample("key").trim(),
      checkpoint,
      kept,
      inclusion: leaves.map((leaf, index) => ({
        index,
        leaf: toBase64(leaf),
        path: inclusionProof(tree, index, leaves.length).map((hash) => toBase64(hash)),
      })),
      consistency: consistencyProof(tree, from, leaves.length).map((hash) => toBase64(hash)),
    };
  };

  test("opens our checkpoints and finds our proofs right, and wrong ones wrong", {
    timeout: LIMIT_MS,
  }, () => {
    const cwd = mkdtempSync(join(tmpdir(), "insitu-go-"));
    mkdirSync(join(cwd, "mod"));
    cpSync(sumdb, join(cwd, "mod"), { recursive: true });
    writeFileSync(join(cwd, "mod/go.mod"), `module golang.org/x/mod\n\ngo ${language}\n`);
    cpSync(join(ROOT, "test/others-tools/main.go"), join(cwd, "main.go"));
    writeFileSync(
      join(cwd, "go.mod"),
      `module insitu.dev/verify\n\ngo ${language}\n\nrequire golang.org/x/mod v0.0.0\n\nreplace golang.org/x/mod => ./mod\n`,
    );
    const env = { ...process.env, GOFLAGS: "-mod=mod", GOPROXY: "off", GOTOOLCHAIN: "local" };
    const built = spawnSync("go", ["build", "-o", "verify", "."], { cwd, env, encoding: "utf8" });
    expect(built.stderr).toBe("");
    const verify = (given: object) =>
      spawnSync(join(cwd, "verify"), { input: JSON.stringify(given), encoding: "utf8" });
    const whole = input();
    expect(verify(whole)).toMatchObject({
      stderr: "",
      stdout: `${leaves.length} leaves, consistent with 14\n`,
    });
    const swapped = { ...whole, inclusion: [{ ...whole.inclusion[3]!, index: 4 }] };
    expect(verify(swapped).stderr).toMatch(/^leaf 4: invalid transparency proof/);
    expect(verify({ ...whole, consistency: whole.consistency.slice(1) }).stderr).toMatch(/^consistency: /);
    expect(verify({ ...whole, checkpoint: checkpoint.replace("\n27\n", "\n28\n") }).stderr).toMatch(
      /^checkpoint: /,
    );
  });
});
