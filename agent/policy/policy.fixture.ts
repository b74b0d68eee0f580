/** Policies for tests. */
import { SiteRules } from "./rules.ts";

/** What the file says is JSON here; everything that it leaves out is not allowed. */
export function siteRules(change: Record<string, unknown> = {}): SiteRules {
  return SiteRules.parse({ version: 1, ...change });
}

/** Allows everything that can be allowed. */
export const OPEN = {
  pipelines: ["*"],
  executors: ["*"],
  images: [`sha256:${"a".repeat(64)}`],
  commands: [["*", "**"]],
  files: ["*"],
  env: ["*"],
  datasets: [{ name: "*", access: "read-write" }],
  egress: ["*:*"],
};
