/** The sample bundle, verified by us and by tools that know nothing of us: Go's sumdb, and openssl, jq and sha256sum. */
import { type SpawnSyncReturns, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { datasetReport } from "../control-plane/evidence/bundle/dataset-report.ts";
import { BundleVerifier, type VerifiedBundle } from "../control-plane/evidence/bundle/verify-bundle.ts";
import { fromBase64, toBase64 } from "../shared/provenance/encoding.ts";
import { parseEntry } from "../shared/provenance/ledger-entry.ts";
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

describe("by hand, as docs/verify-by-hand.md says", () => {
  const script = [
    ...readFileSync(join(ROOT, "docs/verify-by-hand.md"), "utf8").matchAll(/```bash\n([\s\S]*?)```/g),
  ]
    .map(([, commands]) => commands)
    .join("\n");
  const index = leaves.findIndex((leaf) => parseEntry(leaf)?.kind === "receipt");

  function byHand(
    change: { leaf?: string; checkpoint?: string; ca?: string } = {},
  ): SpawnSyncReturns<string> {
    const cwd = mkdtempSync(join(tmpdir(), "insitu-by-hand-"));
    const proof = inclusionProof(tree, index, leaves.length).map((hash) => toBase64(hash));
    const leaf = change.leaf ?? toBase64(leaves[index]!);
    const view = {
      checkpoint: change.checkpoint ?? checkpoint,
      leaves: [
        { index: 0, kind: "attempt.placed", leaf: "", proof: [] },
        { index, kind: "receipt", leaf, proof },
      ],
    };
    writeFileSync(join(cwd, "proof.json"), JSON.stringify(view));
    writeFileSync(join(cwd, "ledger.key"), sample("key"));
    writeFileSync(join(cwd, "ca.crt.pem"), change.ca ?? sample("root.pem"));
    return spawnSync("bash", ["-c", script], { cwd, encoding: "utf8" });
  }

  test("one receipt", () => {
    const done = byHand();
    expect(done.stderr).toBe("");
    expect(done.status).toBe(0);
    expect(done.stdout.match(/Signature Verified Successfully|Verified OK|agent\.pem: OK/g)).toHaveLength(4);
    expect(done.stdout).toContain(`leaf ${index} is in the tree`);
    expect(done.stdout).toMatch(/"dataset": "penguins-/);
  });

  test("a leaf, or a checkpoint, that was changed is refused", () => {
    const text = new TextDecoder().decode(leaves[index]);
    const lied = toBase64(new TextEncoder().encode(text.replace('"seq":', '"seq":1')));
    expect(byHand({ leaf: lied }).status).not.toBe(0);
    expect(
      byHand({ checkpoint: checkpoint.replace(`\n${leaves.length}\n`, `\n${leaves.length + 1}\n`) }).status,
    ).not.toBe(0);
  });
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
