// Original file: proto/insitu/agent/v1/agent.proto


export interface LedgerCheckpoint {
  'note'?: (string);
  'verifierKey'?: (string);
  'proof'?: (Buffer | Uint8Array | string)[];
}

export interface LedgerCheckpoint__Output {
  'note': (string);
  'verifierKey': (string);
  'proof': (Buffer)[];
}
