/** In a file of its own, so that an agent that is configured by flags does without the library. */
import { parse } from "yaml";

export function parseYamlText(text: string): unknown {
  return parse(text);
}
