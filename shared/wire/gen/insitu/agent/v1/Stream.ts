// Original file: proto/insitu/agent/v1/agent.proto

export const Stream = {
  STREAM_UNSPECIFIED: 'STREAM_UNSPECIFIED',
  STREAM_STDOUT: 'STREAM_STDOUT',
  STREAM_STDERR: 'STREAM_STDERR',
  STREAM_AGENT: 'STREAM_AGENT',
} as const;

export type Stream =
  | 'STREAM_UNSPECIFIED'
  | 0
  | 'STREAM_STDOUT'
  | 1
  | 'STREAM_STDERR'
  | 2
  | 'STREAM_AGENT'
  | 3

export type Stream__Output = typeof Stream[keyof typeof Stream]
