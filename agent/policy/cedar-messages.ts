/** Between an agent and the process that evaluates its Cedar policies: a line of JSON each, answered in order. */
import type { Readable } from "node:stream";
import { StringDecoder } from "node:string_decoder";
import { z } from "zod";
import { CedarAnswer, CedarQuestion } from "./cedar-question.ts";

/** The first line is of the kind `load`, every other of the kind `ask`. */
export const CedarRequest = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("load"), file: z.string(), text: z.string() }),
  z.strictObject({ kind: z.literal("ask"), question: CedarQuestion }),
]);
export type CedarRequest = z.infer<typeof CedarRequest>;

export const CedarReply = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("loaded") }),
  /** The text that was given is no valid set of policies. */
  z.strictObject({ kind: z.literal("invalid"), message: z.string() }),
  z.strictObject({ kind: z.literal("answer"), answer: CedarAnswer }),
]);
export type CedarReply = z.infer<typeof CedarReply>;

/** Not `node:readline`: that one also ends a line where a text within it has a line separator of Unicode. */
export function onLines(stream: Readable, receive: (line: string) => void): void {
  const decoder = new StringDecoder("utf8");
  let rest = "";
  stream.on("data", (data: Buffer) => {
    const lines = (rest + decoder.write(data)).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) receive(line);
  });
}
