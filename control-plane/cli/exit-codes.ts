/** What the exit status of a command says. Errors get theirs from the table in shared/errors.ts. */

export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  runNotSuccessful: 3,
  denied: 5,
  notAllowed: 6,
  needsApproval: 9,
  brokenPipe: 141,
} as const;

const CODES: readonly (readonly [number, string])[] = [
  [0, "done as asked"],
  [1, "it failed; the message says why"],
  [2, "the command, a parameter or a document is not valid"],
  [3, "the run ended, and it did not succeed"],
  [4, "not found"],
  [5, "policy lets no environment run a step"],
  [6, "sign in first, or not allowed"],
  [7, "conflict: somebody else changed it first, or the run has ended already"],
  [8, "the server cannot be reached"],
  [9, "a second person has to approve it first"],
  [124, "waited for too long (--timeout)"],
  [130, "interrupted with Ctrl-C"],
  [141, "whoever read the output has closed it"],
];

export function exitCodesHelp(): string {
  const lines = CODES.map(([code, meaning]) => `  ${String(code).padStart(3)}  ${meaning}`);
  return `Exit codes\n\n${lines.join("\n")}\n
\`insitu run --wait\`, \`run --watch\` and \`runs watch\` end with the run's result: 0 when it succeeded, 3 when not.
\`insitu plan\` ends with 5 when a step cannot be placed anywhere.\n`;
}
