// Original file: proto/insitu/agent/v1/agent.proto

export const DESCRIPTOR = {
  "nested": {
    "insitu": {
      "nested": {
        "agent": {
          "nested": {
            "v1": {
              "nested": {
                "AgentGateway": {
                  "methods": {
                    "Enrol": {
                      "requestType": "EnrolRequest",
                      "responseType": "EnrolResponse"
                    },
                    "Renew": {
                      "requestType": "RenewRequest",
                      "responseType": "RenewResponse"
                    },
                    "Recover": {
                      "requestType": "RecoverRequest",
                      "responseType": "RenewResponse"
                    },
                    "Session": {
                      "requestType": "AgentMessage",
                      "requestStream": true,
                      "responseType": "ServerMessage",
                      "responseStream": true
                    },
                    "Report": {
                      "requestType": "ReportBatch",
                      "requestStream": true,
                      "responseType": "Ack",
                      "responseStream": true
                    },
                    "Logs": {
                      "requestType": "LogBatch",
                      "requestStream": true,
                      "responseType": "Ack",
                      "responseStream": true
                    },
                    "Check": {
                      "requestType": "CheckRequest",
                      "responseType": "CheckReply"
                    }
                  }
                },
                "CheckRequest": {
                  "fields": {
                    "version": {
                      "type": "Version",
                      "id": 1
                    }
                  }
                },
                "CheckReply": {
                  "fields": {
                    "version": {
                      "type": "Version",
                      "id": 1
                    },
                    "wallMs": {
                      "type": "uint64",
                      "id": 2
                    },
                    "replicaId": {
                      "type": "string",
                      "id": 3
                    }
                  }
                },
                "EnrolRequest": {
                  "fields": {
                    "token": {
                      "type": "string",
                      "id": 1
                    },
                    "agentName": {
                      "type": "string",
                      "id": 2
                    },
                    "csrDer": {
                      "type": "bytes",
                      "id": 3
                    },
                    "version": {
                      "type": "Version",
                      "id": 4
                    }
                  }
                },
                "EnrolResponse": {
                  "fields": {
                    "environment": {
                      "type": "string",
                      "id": 1
                    },
                    "trustDomain": {
                      "type": "string",
                      "id": 2
                    },
                    "certificatePem": {
                      "type": "bytes",
                      "id": 3
                    },
                    "caPem": {
                      "type": "bytes",
                      "id": 4
                    },
                    "notAfterMs": {
                      "type": "uint64",
                      "id": 5
                    },
                    "offerPublicKeyPem": {
                      "type": "bytes",
                      "id": 6
                    }
                  }
                },
                "RenewRequest": {
                  "fields": {
                    "csrDer": {
                      "type": "bytes",
                      "id": 1
                    },
                    "version": {
                      "type": "Version",
                      "id": 2
                    }
                  }
                },
                "RecoverRequest": {
                  "fields": {
                    "environment": {
                      "type": "string",
                      "id": 1
                    },
                    "agentName": {
                      "type": "string",
                      "id": 2
                    },
                    "csrDer": {
                      "type": "bytes",
                      "id": 3
                    },
                    "version": {
                      "type": "Version",
                      "id": 4
                    }
                  }
                },
                "RenewResponse": {
                  "fields": {
                    "certificatePem": {
                      "type": "bytes",
                      "id": 1
                    },
                    "notAfterMs": {
                      "type": "uint64",
                      "id": 2
                    }
                  }
                },
                "Version": {
                  "fields": {
                    "major": {
                      "type": "uint32",
                      "id": 1
                    },
                    "minor": {
                      "type": "uint32",
                      "id": 2
                    },
                    "software": {
                      "type": "string",
                      "id": 3
                    },
                    "capabilities": {
                      "rule": "repeated",
                      "type": "string",
                      "id": 4
                    }
                  }
                },
                "AgentMessage": {
                  "oneofs": {
                    "message": {
                      "oneof": [
                        "hello",
                        "heartbeat",
                        "goodbye",
                        "refusedOffer"
                      ]
                    }
                  },
                  "fields": {
                    "hello": {
                      "type": "Hello",
                      "id": 1
                    },
                    "heartbeat": {
                      "type": "Heartbeat",
                      "id": 2
                    },
                    "goodbye": {
                      "type": "Goodbye",
                      "id": 3
                    },
                    "refusedOffer": {
                      "type": "RefusedOffer",
                      "id": 4
                    }
                  }
                },
                "Hello": {
                  "fields": {
                    "version": {
                      "type": "Version",
                      "id": 1
                    },
                    "slots": {
                      "type": "uint32",
                      "id": 2
                    },
                    "executors": {
                      "rule": "repeated",
                      "type": "string",
                      "id": 3
                    },
                    "datasets": {
                      "rule": "repeated",
                      "type": "string",
                      "id": 4
                    },
                    "labels": {
                      "keyType": "string",
                      "type": "string",
                      "id": 5
                    },
                    "hostname": {
                      "type": "string",
                      "id": 6
                    },
                    "instanceId": {
                      "type": "string",
                      "id": 7
                    },
                    "held": {
                      "rule": "repeated",
                      "type": "Lease",
                      "id": 8
                    },
                    "natsUserKey": {
                      "type": "string",
                      "id": 9
                    },
                    "sitePolicy": {
                      "type": "SitePolicy",
                      "id": 10
                    },
                    "sandbox": {
                      "type": "Sandbox",
                      "id": 11
                    },
                    "reportPublicKey": {
                      "type": "bytes",
                      "id": 12
                    },
                    "reportKeyProof": {
                      "type": "bytes",
                      "id": 13
                    },
                    "roots": {
                      "type": "HeldRoots",
                      "id": 14
                    },
                    "cordonRevision": {
                      "type": "uint64",
                      "id": 15
                    }
                  }
                },
                "HeldRoots": {
                  "fields": {
                    "revision": {
                      "type": "uint64",
                      "id": 1
                    },
                    "pins": {
                      "rule": "repeated",
                      "type": "string",
                      "id": 2
                    }
                  }
                },
                "SitePolicy": {
                  "fields": {
                    "digest": {
                      "type": "string",
                      "id": 1
                    },
                    "trouble": {
                      "type": "string",
                      "id": 2
                    }
                  }
                },
                "Sandbox": {
                  "fields": {
                    "boxes": {
                      "type": "bool",
                      "id": 1
                    },
                    "summary": {
                      "type": "string",
                      "id": 2
                    },
                    "held": {
                      "keyType": "string",
                      "type": "string",
                      "id": 3
                    },
                    "notHeld": {
                      "keyType": "string",
                      "type": "string",
                      "id": 4
                    },
                    "unboxedUpTo": {
                      "type": "string",
                      "id": 5
                    },
                    "letsOut": {
                      "type": "bool",
                      "id": 6
                    },
                    "runsContainers": {
                      "type": "bool",
                      "id": 7
                    }
                  }
                },
                "Lease": {
                  "fields": {
                    "runId": {
                      "type": "string",
                      "id": 1
                    },
                    "stepId": {
                      "type": "string",
                      "id": 2
                    },
                    "attempt": {
                      "type": "uint32",
                      "id": 3
                    },
                    "epoch": {
                      "type": "uint32",
                      "id": 4
                    }
                  }
                },
                "Heartbeat": {
                  "fields": {
                    "seq": {
                      "type": "uint64",
                      "id": 1
                    },
                    "sentAtMs": {
                      "type": "uint64",
                      "id": 2
                    },
                    "held": {
                      "rule": "repeated",
                      "type": "Lease",
                      "id": 3
                    },
                    "freeSlots": {
                      "type": "uint32",
                      "id": 4
                    },
                    "spoolBytes": {
                      "type": "uint64",
                      "id": 5
                    },
                    "droppedLogBytes": {
                      "type": "uint64",
                      "id": 6
                    },
                    "notTakingWork": {
                      "type": "string",
                      "id": 7
                    },
                    "sitePolicy": {
                      "type": "SitePolicy",
                      "id": 8
                    },
                    "refusedOffers": {
                      "type": "uint64",
                      "id": 9
                    },
                    "roots": {
                      "type": "HeldRoots",
                      "id": 10
                    },
                    "ledger": {
                      "type": "RememberedLedger",
                      "id": 11
                    },
                    "cordonRevision": {
                      "type": "uint64",
                      "id": 12
                    }
                  }
                },
                "RememberedLedger": {
                  "fields": {
                    "size": {
                      "type": "uint64",
                      "id": 1
                    },
                    "trouble": {
                      "type": "string",
                      "id": 2
                    }
                  }
                },
                "LedgerCheckpoint": {
                  "fields": {
                    "note": {
                      "type": "string",
                      "id": 1
                    },
                    "verifierKey": {
                      "type": "string",
                      "id": 2
                    },
                    "proof": {
                      "rule": "repeated",
                      "type": "bytes",
                      "id": 3
                    }
                  }
                },
                "RefusedOffer": {
                  "fields": {
                    "payload": {
                      "type": "bytes",
                      "id": 1
                    },
                    "reason": {
                      "type": "string",
                      "id": 2
                    }
                  }
                },
                "Goodbye": {
                  "fields": {
                    "reason": {
                      "type": "string",
                      "id": 1
                    }
                  }
                },
                "ServerMessage": {
                  "oneofs": {
                    "message": {
                      "oneof": [
                        "welcome",
                        "heartbeatReply",
                        "cancel",
                        "drain",
                        "natsAccess",
                        "roots"
                      ]
                    }
                  },
                  "fields": {
                    "welcome": {
                      "type": "Welcome",
                      "id": 1
                    },
                    "heartbeatReply": {
                      "type": "HeartbeatReply",
                      "id": 2
                    },
                    "cancel": {
                      "type": "Cancel",
                      "id": 3
                    },
                    "drain": {
                      "type": "Drain",
                      "id": 4
                    },
                    "natsAccess": {
                      "type": "NatsAccess",
                      "id": 5
                    },
                    "roots": {
                      "type": "Roots",
                      "id": 6
                    }
                  }
                },
                "Roots": {
                  "fields": {
                    "revision": {
                      "type": "uint64",
                      "id": 1
                    },
                    "caPem": {
                      "type": "bytes",
                      "id": 2
                    },
                    "issuerPin": {
                      "type": "string",
                      "id": 3
                    },
                    "signatures": {
                      "rule": "repeated",
                      "type": "RootsSignature",
                      "id": 4
                    }
                  }
                },
                "RootsSignature": {
                  "fields": {
                    "signerPem": {
                      "type": "bytes",
                      "id": 1
                    },
                    "signature": {
                      "type": "bytes",
                      "id": 2
                    }
                  }
                },
                "Welcome": {
                  "fields": {
                    "version": {
                      "type": "Version",
                      "id": 1
                    },
                    "heartbeatMs": {
                      "type": "uint32",
                      "id": 2
                    },
                    "leaseTtlMs": {
                      "type": "uint32",
                      "id": 3
                    },
                    "nats": {
                      "type": "NatsAccess",
                      "id": 4
                    },
                    "wallMs": {
                      "type": "uint64",
                      "id": 5
                    },
                    "offerPublicKeyPem": {
                      "type": "bytes",
                      "id": 6
                    },
                    "replicaId": {
                      "type": "string",
                      "id": 7
                    },
                    "gateways": {
                      "rule": "repeated",
                      "type": "string",
                      "id": 8
                    },
                    "cordon": {
                      "type": "Cordon",
                      "id": 9
                    }
                  }
                },
                "Cordon": {
                  "fields": {
                    "revision": {
                      "type": "uint64",
                      "id": 1
                    },
                    "cordoned": {
                      "type": "bool",
                      "id": 2
                    },
                    "by": {
                      "type": "string",
                      "id": 3
                    },
                    "reason": {
                      "type": "string",
                      "id": 4
                    },
                    "drainDeadlineMs": {
                      "type": "uint64",
                      "id": 5
                    },
                    "drainOnce": {
                      "type": "bool",
                      "id": 6
                    }
                  }
                },
                "NatsAccess": {
                  "fields": {
                    "servers": {
                      "rule": "repeated",
                      "type": "string",
                      "id": 1
                    },
                    "user": {
                      "type": "string",
                      "id": 2
                    },
                    "password": {
                      "type": "string",
                      "id": 3
                    },
                    "inboxPrefix": {
                      "type": "string",
                      "id": 4
                    },
                    "stream": {
                      "type": "string",
                      "id": 5
                    },
                    "consumer": {
                      "type": "string",
                      "id": 6
                    },
                    "caPem": {
                      "type": "bytes",
                      "id": 7
                    },
                    "userJwt": {
                      "type": "string",
                      "id": 8
                    },
                    "throughGateway": {
                      "type": "bool",
                      "id": 9
                    }
                  }
                },
                "HeartbeatReply": {
                  "fields": {
                    "seq": {
                      "type": "uint64",
                      "id": 1
                    },
                    "renewed": {
                      "rule": "repeated",
                      "type": "Lease",
                      "id": 2
                    },
                    "cancels": {
                      "rule": "repeated",
                      "type": "Cancel",
                      "id": 3
                    },
                    "superseded": {
                      "rule": "repeated",
                      "type": "Lease",
                      "id": 4
                    },
                    "cordoned": {
                      "type": "bool",
                      "id": 5
                    },
                    "gateways": {
                      "rule": "repeated",
                      "type": "string",
                      "id": 6
                    },
                    "wallMs": {
                      "type": "uint64",
                      "id": 7
                    },
                    "ledger": {
                      "type": "LedgerCheckpoint",
                      "id": 8
                    },
                    "cordon": {
                      "type": "Cordon",
                      "id": 9
                    }
                  }
                },
                "Cancel": {
                  "fields": {
                    "lease": {
                      "type": "Lease",
                      "id": 1
                    },
                    "reason": {
                      "type": "string",
                      "id": 2
                    }
                  }
                },
                "Drain": {
                  "fields": {
                    "reconnectAfterMs": {
                      "type": "uint32",
                      "id": 1
                    },
                    "reason": {
                      "type": "string",
                      "id": 2
                    },
                    "gateways": {
                      "rule": "repeated",
                      "type": "string",
                      "id": 3
                    }
                  }
                },
                "ReportBatch": {
                  "fields": {
                    "reports": {
                      "rule": "repeated",
                      "type": "Report",
                      "id": 1
                    },
                    "signature": {
                      "type": "bytes",
                      "id": 2
                    },
                    "keyId": {
                      "type": "string",
                      "id": 3
                    }
                  }
                },
                "Report": {
                  "fields": {
                    "seq": {
                      "type": "uint64",
                      "id": 1
                    },
                    "payload": {
                      "type": "bytes",
                      "id": 2
                    },
                    "signature": {
                      "type": "bytes",
                      "id": 3
                    },
                    "keyId": {
                      "type": "string",
                      "id": 4
                    }
                  }
                },
                "LogBatch": {
                  "fields": {
                    "chunks": {
                      "rule": "repeated",
                      "type": "LogChunk",
                      "id": 1
                    },
                    "signature": {
                      "type": "bytes",
                      "id": 2
                    },
                    "keyId": {
                      "type": "string",
                      "id": 3
                    }
                  }
                },
                "LogChunk": {
                  "fields": {
                    "seq": {
                      "type": "uint64",
                      "id": 1
                    },
                    "runId": {
                      "type": "string",
                      "id": 2
                    },
                    "stepId": {
                      "type": "string",
                      "id": 3
                    },
                    "attempt": {
                      "type": "uint32",
                      "id": 4
                    },
                    "epoch": {
                      "type": "uint32",
                      "id": 5
                    },
                    "firstEntry": {
                      "type": "uint32",
                      "id": 6
                    },
                    "entryCount": {
                      "type": "uint32",
                      "id": 7
                    },
                    "encoding": {
                      "type": "string",
                      "id": 8
                    },
                    "entries": {
                      "type": "bytes",
                      "id": 9
                    }
                  }
                },
                "LogEntries": {
                  "fields": {
                    "entries": {
                      "rule": "repeated",
                      "type": "LogEntry",
                      "id": 1
                    }
                  }
                },
                "LogEntry": {
                  "fields": {
                    "seq": {
                      "type": "uint32",
                      "id": 1
                    },
                    "atMs": {
                      "type": "uint64",
                      "id": 2
                    },
                    "stream": {
                      "type": "Stream",
                      "id": 3
                    },
                    "data": {
                      "type": "bytes",
                      "id": 4
                    },
                    "droppedBytes": {
                      "type": "uint64",
                      "id": 5
                    },
                    "droppedLines": {
                      "type": "uint64",
                      "id": 6
                    }
                  }
                },
                "Stream": {
                  "values": {
                    "STREAM_UNSPECIFIED": 0,
                    "STREAM_STDOUT": 1,
                    "STREAM_STDERR": 2,
                    "STREAM_AGENT": 3
                  }
                },
                "Ack": {
                  "fields": {
                    "ackedSeq": {
                      "type": "uint64",
                      "id": 1
                    },
                    "rejected": {
                      "rule": "repeated",
                      "type": "Rejected",
                      "id": 2
                    }
                  }
                },
                "Rejected": {
                  "fields": {
                    "seq": {
                      "type": "uint64",
                      "id": 1
                    },
                    "code": {
                      "type": "string",
                      "id": 2
                    },
                    "message": {
                      "type": "string",
                      "id": 3
                    }
                  }
                }
              }
            }
          }
        }
      }
    }
  }
};
