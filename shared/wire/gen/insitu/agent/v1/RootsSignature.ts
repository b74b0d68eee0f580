// Original file: proto/insitu/agent/v1/agent.proto


export interface RootsSignature {
  'signerPem'?: (Buffer | Uint8Array | string);
  'signature'?: (Buffer | Uint8Array | string);
}

export interface RootsSignature__Output {
  'signerPem': (Buffer);
  'signature': (Buffer);
}
