export function beginFile(record: string, fd: number): () => void;
export function beginDirectory(record: string, path: string): () => void;
/** `luck(path)`: whether the kernel has written by itself what the file holds now. */
export function restoreImage(
  record: string,
  root: string,
  target: string,
  luck?: (path: string) => boolean,
): void;
