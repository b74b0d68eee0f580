/** In a file of its own, so that only who wants YAML loads the library. */
import { stringify } from "yaml";

export function yamlText(value: unknown): string {
  return stringify(value, { aliasDuplicateObjects: false, lineWidth: 0 });
}
