// Original file: proto/insitu/agent/v1/agent.proto


export interface RefusedOffer {
  'payload'?: (Buffer | Uint8Array | string);
  'reason'?: (string);
}

export interface RefusedOffer__Output {
  'payload': (Buffer);
  'reason': (string);
}
