/** A container image as a step names it: by its digest, so that it is the same image wherever and whenever it runs. Pure. */

const IMAGE_MAX_CHARS = 512;
/** The name is for people; a tag is allowed and means nothing. */
export const IMAGE_PATTERN =
  /^[a-z0-9]+(?:[._:/-]+[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?@sha256:[0-9a-f]{64}$/;
export const IMAGE_EXPECTED =
  "an image by its digest, such as registry.example/stats@sha256:4f53…: `insitu-agent images import` says it, and so does `skopeo inspect --format '{{.Digest}}' docker://NAME:TAG`";

export function isImage(text: string): boolean {
  return text.length <= IMAGE_MAX_CHARS && IMAGE_PATTERN.test(text);
}

/** `sha256:…` of the image's manifest, or of an index of manifests for several platforms. */
export function digestOfImage(image: string): string {
  return image.slice(image.lastIndexOf("@") + 1);
}
