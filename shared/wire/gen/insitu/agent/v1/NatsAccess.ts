// Original file: proto/insitu/agent/v1/agent.proto


export interface NatsAccess {
  'servers'?: (string)[];
  'user'?: (string);
  'password'?: (string);
  'inboxPrefix'?: (string);
  'stream'?: (string);
  'consumer'?: (string);
  'caPem'?: (Buffer | Uint8Array | string);
  'userJwt'?: (string);
  'throughGateway'?: (boolean);
}

export interface NatsAccess__Output {
  'servers': (string)[];
  'user': (string);
  'password': (string);
  'inboxPrefix': (string);
  'stream': (string);
  'consumer': (string);
  'caPem': (Buffer);
  'userJwt': (string);
  'throughGateway': (boolean);
}
