/** The evaluator as a program of its own, and programs that stand in its place. */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { type Bundle, bundleOf } from "../bundle.fixture.ts";

export function bundleEvaluator(): Promise<Bundle> {
  return bundleOf(new URL("./evaluator.ts", import.meta.url));
}

export function launchNode(...args: string[]): ChildProcessWithoutNullStreams {
  return spawn(process.execPath, args, { stdio: "pipe", env: {} });
}
