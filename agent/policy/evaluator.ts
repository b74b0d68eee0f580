/**
 * The program `insitu-evaluator`: the Cedar policies of one version of a site's file, asked line by line on standard
 * input. It ends with its input, and so with its agent. Anything unforeseen ends it too, which its agent takes for a no.
 */
import { setFlagsFromString } from "node:v8";
import { InsituError } from "../../shared/errors.ts";
import { type CedarReply, CedarRequest, onLines } from "./cedar-messages.ts";
import type { ParsedCedar } from "./cedar-policies.ts";

// Of V8, and it counts for what is compiled from then on: WebAssembly is compiled fast instead of well, so that it is
// there in half the time and takes a third less memory.
setFlagsFromString("--liftoff-only");

let policies: ParsedCedar | undefined;

async function replyTo(line: string): Promise<CedarReply> {
  const request = CedarRequest.parse(JSON.parse(line));
  if (request.kind === "ask") {
    if (policies === undefined) throw new Error("asked before there were policies");
    return { kind: "answer", answer: policies.answer(request.question) };
  }
  const { parseCedar } = await import("./cedar-policies.ts");
  try {
    policies = parseCedar(request.file, request.text);
    return { kind: "loaded" };
  } catch (thrown) {
    const { code, message } = InsituError.from(thrown);
    if (code !== "request.invalid") throw thrown;
    return { kind: "invalid", message };
  }
}

let replied = Promise.resolve();
onLines(process.stdin, (line) => {
  replied = replied.then(async () => {
    process.stdout.write(`${JSON.stringify(await replyTo(line))}\n`);
  });
});
